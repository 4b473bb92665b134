"""``python -m usersvc`` is the console script ``usersvc``."""

from usersvc.cli import main

if __name__ == "__main__":
    main()

# `make docker` and deploy/compose.yaml replace this tag by a digest (a named build context), so that their builds are
# reproducible.
FROM python:3.13-slim AS base

# --- build: pip and Poetry are not copied into the image -----------------------------------------------------------
FROM base AS build
WORKDIR /build

# For an index that only the caller's environment names, not pip's configuration.
ARG PIP_INDEX_URL=""
COPY tools/poetry.txt tools/poetry.py tools/
RUN python -m venv .tools && .tools/bin/python -m pip install -qq --no-cache-dir --require-hashes --requirement tools/poetry.txt

# The final path: an environment cannot be moved.
RUN python -m venv --without-pip /opt/usersvc
ENV VIRTUAL_ENV=/opt/usersvc
# Before the code, which changes more often.
COPY pyproject.toml poetry.lock ./
RUN .tools/bin/python tools/poetry.py sync --only main --extras "otel postgres redis" --no-root --no-cache --no-interaction

COPY README.md LICENSE ./
COPY usersvc usersvc
# As a wheel: `poetry install` would leave a link to this directory.
RUN .tools/bin/python -m poetry build --quiet --format wheel --no-interaction \
    && .tools/bin/python -m pip --python /opt/usersvc/bin/python install -qq --no-cache-dir --no-deps --no-index dist/*.whl
# The root file system may be read-only at run time. The code in the image never changes, so it is not checked at start.
RUN /opt/usersvc/bin/python -m compileall -qq -j 0 --invalidation-mode unchecked-hash /opt/usersvc/lib

# --- the image ------------------------------------------------------------------------------------------------------
FROM base
ARG SOURCE=""
ARG VERSION=""
ARG REVISION=""
LABEL org.opencontainers.image.title="usersvc" \
      org.opencontainers.image.source="$SOURCE" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.description="A RESTful user-registration service" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.vendor="The usersvc maintainers"

# Numbers, because volumes and `runAsNonRoot` do not resolve names.
RUN groupadd --gid 10001 usersvc \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin usersvc \
    && install --directory --owner 10001 --group 10001 --mode 0700 /data
COPY --from=build /opt/usersvc /opt/usersvc
ENV PATH=/opt/usersvc/bin:$PATH
# The base image has no bytecode of the standard library: compile the modules that the service imports.
RUN python -c "import usersvc.cli, usersvc.cli.serve, usersvc.web.middleware.rate_limit, usersvc.adapters.mail.smtp_notifier, http.client"

ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    USERSVC_HOST=0.0.0.0 \
    USERSVC_PORT=8000
VOLUME /data
# The default database is in the working directory.
WORKDIR /data
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# /livez, not /readyz: a failed check replaces the container, which would not repair the database. http.client, because it
# ignores proxy settings.
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import os, sys, http.client as http; c = http.HTTPConnection('127.0.0.1', int(os.environ['USERSVC_PORT']), timeout=4); c.request('GET', '/livez'); sys.exit(c.getresponse().status != 200)"]
# Exec form, so that the stop signal reaches the service and not a shell.
ENTRYPOINT ["usersvc"]
CMD ["serve"]

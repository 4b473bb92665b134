# `make docker` and deploy/compose.yaml replace this tag by a digest (a named build context), so that every build of theirs
# gets the same files.
FROM python:3.13-slim AS base

# --- build: has pip and Poetry, none of which reaches the image -----------------------------------------------------
FROM base AS build
WORKDIR /build

# pip's own configuration names the index; this is for a mirror that only the caller's environment knows.
ARG PIP_INDEX_URL=""
COPY tools/poetry.txt tools/poetry.py tools/
RUN python -m venv .tools && .tools/bin/python -m pip install -qq --no-cache-dir --require-hashes --requirement tools/poetry.txt

# The path is the final one: an environment does not survive a move.
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
# The root file system may be read-only later. The image never changes under the code, so no start has to check that.
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

# Numbers, since a volume and a `runAsNonRoot` rule know no names.
RUN groupadd --gid 10001 usersvc \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin usersvc \
    && install --directory --owner 10001 --group 10001 --mode 0700 /data
COPY --from=build /opt/usersvc /opt/usersvc
ENV PATH=/opt/usersvc/bin:$PATH
# The base image's standard library comes without bytecode: make it for what the service imports, while this can write.
RUN python -c "import usersvc.cli, usersvc.cli.serve, usersvc.web.middleware.rate_limit, usersvc.adapters.mail.smtp_notifier, http.client"

ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    USERSVC_HOST=0.0.0.0 \
    USERSVC_PORT=8000
VOLUME /data
# Where the database is unless USERSVC_DATABASE_URL, or the file that USERSVC_DATABASE_URL_FILE names, says otherwise.
WORKDIR /data
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# /livez, not /readyz: what acts on this check replaces the container, which brings no database back. Whether to send
# it requests is a question for the load balancer, and /readyz. http.client, because it never goes through a proxy.
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import os, sys, http.client as http; c = http.HTTPConnection('127.0.0.1', int(os.environ['USERSVC_PORT']), timeout=4); c.request('GET', '/livez'); sys.exit(c.getresponse().status != 200)"]
# Exec form, so that the stop signal reaches the service and not a shell.
ENTRYPOINT ["usersvc"]
CMD ["serve"]

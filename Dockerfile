# syntax=docker/dockerfile:1
# The image of the API, the workers and the commands. Another base, such as one from a mirror or pinned to a digest:
# docker build --build-arg PYTHON_IMAGE=registry.example/python:3.13-slim .
ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS build
RUN python -m venv --without-pip /venv
COPY requirements.lock .
RUN pip --python /venv/bin/python install --no-cache-dir --require-hashes -r requirements.lock

FROM ${PYTHON_IMAGE}
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin feed
COPY --from=build /venv /venv
WORKDIR /app
COPY manage.py ./
COPY bin bin
COPY eventbus eventbus
COPY posts posts
COPY feeds feeds
COPY feedsite feedsite
# All that is written at run time goes under FEED_DATA_DIR (bin/serve keeps the API's metrics there), so the rest of the
# file system may be read-only. The workers must not share that metrics directory: PROMETHEUS_MULTIPROC_DIR stays unset.
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOST=0.0.0.0 FEED_DATA_DIR=/tmp/feed LOG_FORMAT=json
# The secret the settings ask for is of this one command only: it is not in the image.
RUN python -m compileall -q eventbus posts feeds feedsite && \
    DATABASE_URL=postgresql://none/none REDIS_URL=redis://none KAFKA_BOOTSTRAP_SERVERS=none \
    DJANGO_SECRET_KEY=only-to-collect-static-files-at-build-time \
    python manage.py collectstatic --noinput && rm -rf /tmp/*
# A number, so that Kubernetes can see that it is not root.
USER 10001:10001
EXPOSE 8000 9100
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s CMD ["bin/healthy", "8000/healthz"]
CMD ["bin/serve"]

# syntax=docker/dockerfile:1
ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS build
RUN python -m venv /venv
COPY requirements.lock .
RUN /venv/bin/pip install --no-cache-dir --require-hashes -r requirements.lock

FROM ${PYTHON_IMAGE}
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin feed
COPY --from=build /venv /venv
WORKDIR /app
COPY manage.py ./
COPY bin bin
COPY eventbus eventbus
COPY posts posts
COPY feeds feeds
COPY feedsite feedsite
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOST=0.0.0.0 FEED_DATA_DIR=/tmp/feed PROMETHEUS_MULTIPROC_DIR=/tmp/feed/metrics LOG_FORMAT=json
# The secrets the settings ask for are of this one command only: they are not in the image.
RUN DATABASE_URL=postgresql://none/none DJANGO_SECRET_KEY=only-to-collect-static-files-at-build-time \
    JWT_SIGNING_KEY=only-to-collect-static-files-at-build-time REDIS_URL=redis://none KAFKA_BOOTSTRAP_SERVERS=none \
    PROMETHEUS_MULTIPROC_DIR= python manage.py collectstatic --noinput
USER feed
EXPOSE 8000 9100
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
CMD ["bin/serve"]

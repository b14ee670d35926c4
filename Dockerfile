# One image for release, web, beat and worker; the Procfile has their commands.
FROM python:3.12-slim AS build
WORKDIR /build
COPY requirements.in requirements-up.lock ./
# Everything is fetched as the lock file's hashes say; of that, the image takes what it runs on.
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip wheel --require-hashes --requirement requirements-up.lock --wheel-dir wheels \
    && /opt/venv/bin/pip install --no-index --find-links wheels --requirement requirements.in

FROM python:3.12-slim
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
COPY --from=build /opt/venv /opt/venv
COPY . .
RUN DEBUG=1 python manage.py collectstatic --noinput \
    && useradd --uid 10001 --no-create-home truebeat
USER 10001
EXPOSE 8000
CMD ["gunicorn", "config.wsgi", "--bind", "0.0.0.0:8000", "--threads", "4", "--no-control-socket"]

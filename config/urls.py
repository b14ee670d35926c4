"""URLs of the web service: the admin and the health check."""

from django.contrib import admin
from django.urls import path
from django.views.generic import RedirectView

from scheduling.health import healthz, healthz_web

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/", admin.site.urls),
    path("healthz", healthz, name="healthz"),
    path("healthz/web", healthz_web, name="healthz_web"),
]

from django.urls import path
from reports import views

urlpatterns = [
    path("reports/", views.reports),
    path("reports/<int:report_id>/", views.report),
]

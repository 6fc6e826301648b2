"""A request stores a report, and submits its job once that is committed."""

from django.db import transaction
from django.http import HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.http import require_http_methods
from mysite.celery import jobs

from reports.models import Report
from reports.tasks import write_report


@require_http_methods(["POST"])
def reports(request):
    if not request.user.is_authenticated:
        return HttpResponse(status=401)
    with transaction.atomic():
        report = Report.objects.create(owner=request.user, month=request.POST["month"])
        transaction.on_commit(lambda: submit(report))
    return JsonResponse({"id": report.id}, status=202)


def submit(report):
    report.job_id = jobs.submit(write_report.s(report.id), username=report.owner.username)
    report.save(update_fields=["job_id"])


@require_http_methods(["GET", "DELETE"])
def report(request, report_id):
    if not request.user.is_authenticated:
        return HttpResponse(status=401)
    report = get_object_or_404(Report, id=report_id, owner=request.user)
    with jobs.attach(report.job_id, username=request.user.username) as handle:
        if request.method == "DELETE":
            handle.cancel_job()
        job = handle.get_job()
    progress = job.progress and job.progress.fraction
    return JsonResponse({"status": job.status, "progress": progress, "text": report.text})

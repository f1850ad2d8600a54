"""templates/certificates/cronjob.yaml"""

from __future__ import annotations

from charts import container, rendered


def test_does_between_upgrades_what_the_hook_does() -> None:
    chart = rendered("tls")
    cron = chart.one("CronJob", "certificates")
    assert cron["spec"]["schedule"] == "23 4 * * 1"
    assert container(cron)["args"] == container(chart.one("Job", "certificates-hook"))["args"]
    assert cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["serviceAccountName"] == "trellis-certificates"
    kept = {one["kind"] for one in chart.of("certificates/cronjob")}
    assert {"ServiceAccount", "Role", "RoleBinding"} < kept
    assert not any(
        "helm.sh/hook" in (one["metadata"].get("annotations") or {}) for one in chart.of("certificates/cronjob")
    )


def test_only_upgrades_where_the_operator_wants_it() -> None:
    assert not rendered("tls", {"tls": {"job": {"renewSchedule": ""}}}).of("certificates/cronjob")

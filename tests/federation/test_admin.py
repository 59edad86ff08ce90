from __future__ import annotations

from datetime import datetime

import pytest
from nvflare.fuel.flare_api.api_spec import ClientInfo, JobInfo, ServerInfo, SystemInfo

from manyhands.federation.admin import RESTART_SECONDS, was_lost

RESTARTED = 1_000_000.0
LATER = RESTARTED + RESTART_SECONDS + 1


def info(heard: list[float], *running: str) -> SystemInfo:
    sites = [ClientInfo(f"silo-{i}", time) for i, time in enumerate(heard)]
    return SystemInfo(ServerInfo("started", RESTARTED), sites, [JobInfo(job, "app") for job in running])


@pytest.mark.parametrize(
    ("began", "heard", "running", "lost"),
    [
        (-60, [LATER], [], True),
        (-60, [RESTARTED + 1, LATER], ["another"], True),
        (-60, [LATER], ["job"], False),
        (-60, [RESTARTED + 1], [], False),
        (-60, [], [], False),
        (60, [LATER], [], False),
        (None, [LATER], [], False),
    ],
)
def test_a_job_is_lost_if_a_restarted_server_with_sites_does_not_go_on_with_it(
    began: float | None, heard: list[float], running: list[str], lost: bool
) -> None:
    time = "" if began is None else datetime.fromtimestamp(RESTARTED + began).isoformat(sep=" ")
    assert was_lost({"job_id": "job", "start_time": time}, info(heard, *running)) is lost

"""What it costs to have chosen images judged again, counted before anything is sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rightreasons.critic.case import Case
from rightreasons.lvlm.ledger.ledger import Ledger
from rightreasons.pipeline.again import Again, Appeal, open_appeal
from rightreasons.pipeline.questions.estimate import estimate_plan
from rightreasons.pipeline.questions.open_questions import Desk, Plan, open_silently
from rightreasons.project.project import Project, price_file
from rightreasons.runs.folder import RunFolder


@dataclass(frozen=True)
class AppealPlan(Plan):
    """The questions of an appeal: of its images alone, and without controls."""

    appeal: Appeal

    def all_cases(self) -> Iterator[Case]:
        """The images of the appeal."""
        yield from (self.cases[row] for row in self.appeal.rows)

    def consult(self, case: Case, desk: Desk) -> None:
        """Asks ``desk`` what would be asked about one image."""
        self.appeal.consult(case, desk.ask)


def estimate_appeal(project: Project, folder: RunFolder, images: Sequence[int], role: Again) -> dict[str, Any]:
    """Calls, tokens, US dollars and time of judging these images again, as ``estimate_plan`` gives them. Sends nothing."""
    critic = open_silently(project, "critic")
    judge = critic if project.config.critic.judge is None else open_silently(project, "judge")
    with folder.locked():
        appeal = open_appeal(project, folder, images, role, (critic, judge))
        plan = AppealPlan(project, appeal.cases, tuple(appeal.panel.examples), critic, judge, len(appeal.rows), True, appeal)
        try:
            with Ledger(folder.ledger) as ledger:
                return estimate_plan(plan, ledger, prices=price_file(project))
        finally:
            plan.close()

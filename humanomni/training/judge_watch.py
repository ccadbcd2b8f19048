"""Watches the judge behind the coherence reward: is it there, is it the one that the run began with, does it drift."""

import logging
from collections import deque
from pathlib import Path
from typing import Any

import httpx
import torch
from accelerate.utils import gather
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from fgce.canary import CANARIES
from fgce.client import FgceClient, connect_args
from fgce.schema import Identity, ScoreResponse
from humanomni.training.checkpoints import left_in, saved_state
from humanomni.training.run import ConfigurationError

logger = logging.getLogger(__name__)

_PROBE_SECONDS = 10.0


class JudgeUnavailableError(RuntimeError):
    """No judge answers at the start, it left too many explanations without a score, or it is another one.

    A run that it stops has a checkpoint and no result.
    """


class JudgeWatch(TrainerCallback, ExportableState):
    """Says when a run should stop because of its judge, and keeps the judge's identity in each checkpoint.

    Args:
        window: steps over which missing judgements are counted.
        max_missing: share of them at which the run should stop (a circuit breaker).
        identity: rubric, judge and method that the run's rewards come from; None: those of the first answer.
        url: the servers, as :func:`fgce.client.connect_args` takes them.
        canary_steps: every how many steps their canaries are looked at; 0: never.
        allow_another: go on, with a warning, where rubric or judge change.
    """

    def __init__(
        self,
        window: int,
        max_missing: float,
        identity: Identity | None = None,
        url: str | None = None,
        canary_steps: int = 0,
        allow_another: bool = False,
    ) -> None:
        self.max_missing = max_missing
        self.identity = identity
        self.url = url
        self.canary_steps = canary_steps
        self.allow_another = allow_another
        self._other: Identity | None = None
        self._steps: deque[tuple[int, int]] = deque(maxlen=window)
        self._ended = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A run whose last step is taken is judged by the steps before its checkpoint, however often it is started."""
        self._ended = state.global_step >= state.max_steps
        if self._ended:
            saved = left_in(state, type(self).__name__).get("steps", [])
            self._steps.extend((asked, missing) for asked, missing in saved)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._ended = state.global_step >= state.max_steps

    def add(self, asked: int, missing: int) -> None:
        """One step's judgements, over all processes."""
        self._steps.append((asked, missing))

    def see(self, response: ScoreResponse) -> None:
        """Compares rubric, judge and method of an answer with those of the run."""
        identity = response.identity
        if identity is None or identity == self.identity:
            return
        if self.identity is None:
            self.identity = identity
        elif self.allow_another:
            _warn_of_another(identity, self.identity)
            self.identity = identity
        else:
            self._other = identity

    def share(self, device: torch.device) -> None:
        """Tells the other processes of a judge that only this one has met."""
        if gather(torch.tensor([self._other is not None], device=device)).any() and self._other is None:
            self._other = {"rubric": "see the other ranks' logs"}

    def canaries(self, step: int) -> dict[str, float]:
        """Every few steps, how many servers are ready and how many of their canaries have moved; for the log."""
        if not self.canary_steps or step % self.canary_steps:
            return {}
        health = probe_servers(self.url)
        for name, one in health.items():
            if not one.ready or one.drifted:
                logger.warning("FG-CE at %s: %s", name, one.text)
        return {
            "judge/servers_ready": float(sum(one.ready for one in health.values())),
            "judge/canaries_drifted": float(sum(len(one.drifted) for one in health.values())),
        }

    @property
    def message(self) -> str | None:
        """Why the run should stop: another judge, or too high a share of missing judgements in a full window.

        After the last step a window that is not full counts too: a short run needs its judge as well.
        """
        if self._other is not None:
            return (
                f"rubric, judge or method of the FG-CE server changed during the run, from {self.identity} to "
                f"{self._other}: rewards before and after do not compare. Bring the former back and start this "
                "run again, or pass --allow_another_judge"
            )
        asked, missing = (sum(column) for column in zip(*self._steps, strict=True)) if self._steps else (0, 0)
        full = self._ended or len(self._steps) == self._steps.maxlen
        if not full or missing <= self.max_missing * asked:
            return None
        if self._ended:
            mend = (
                "remove the checkpoints of these steps and start this run again, or take it as it is with "
                "--judge_max_missing 1"
            )
        else:
            mend = "start this run again: it goes on from its checkpoint"
        return (
            f"the FG-CE judge left {missing} of {asked} explanations without a score over the last {len(self._steps)} "
            f"steps (judge_max_missing {self.max_missing:g}); see that its server answers /readyz, then {mend}"
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {}, "attributes": {"identity": self.identity, "steps": list(self._steps)}}


class ServerHealth:
    """The state of one FG-CE server: ready, the canaries whose scores moved, and a line that says it."""

    def __init__(self, report: dict[str, Any] | None, problem: str = "") -> None:
        self.ready = bool(report and report["ready"])
        self.drifted: list[str] = list(report["drifted"]) if report else []
        if self.drifted:
            problem = f"canaries have drifted: {', '.join(self.drifted)}"
        elif report and not self.ready:
            problem = f"not ready: {report.get('reasons')}"
        self.text = problem or "ready, canaries as at first"


def probe_servers(url: str | None) -> dict[str, ServerHealth]:
    """GET /readyz of every FG-CE server that ``url``, or the environment, names."""
    urls, token = connect_args(url)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    health = {}
    for one in urls:
        try:
            answer = httpx.get(f"{one}/readyz", headers=headers, timeout=_PROBE_SECONDS)
            report = answer.json()
            health[one] = ServerHealth(report) if "drifted" in report else ServerHealth(None, f"answers {report}")
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            health[one] = ServerHealth(None, f"does not answer /readyz: {error!r}")
    return health


def ask_identity(client: FgceClient) -> Identity:
    """Rubric, judge and method behind the rewards.

    Raises:
        JudgeUnavailableError: when no server answers, after the client's retries: a run that began would learn from the
            other rewards alone.
    """
    response = client.score_sync(CANARIES[:1])
    identity = response.identity
    if identity is None:
        raise JudgeUnavailableError(
            f"the rewards need an FG-CE judge, and none answers: {response.results[0].detail}. Serve one "
            "(srun_fgce.sh, or python -m fgce serve), name it in fgce_url or FGCE_URL, and start this run again"
        )
    return identity


def require_same_judge(checkpoint: Path, now: Identity | None, allow: bool) -> Identity | None:
    """Compares the judge that a checkpoint was trained with to the one that answers.

    Returns:
        The judge to go on with: where none answers, the checkpoint's, so that no other takes its place unseen.

    Raises:
        ConfigurationError: when they differ and ``allow`` is false.
    """
    before = saved_state(checkpoint, JudgeWatch.__name__).get("identity")
    if before is None or now is None or before == now:
        return now or before
    if allow:
        _warn_of_another(now, before)
        return now
    raise ConfigurationError(
        f"{checkpoint} was trained with {before}, but the FG-CE server now has {now}: rewards before and after do not "
        "compare. Serve the former again, begin with a new output_dir, or pass --allow_another_judge"
    )


def _warn_of_another(now: Identity, before: Identity) -> None:
    logger.warning("going on with another judge: %s, after %s", now, before)

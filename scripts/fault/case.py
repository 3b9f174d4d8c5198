"""One fault: its folder, its dice, and how what became of it is judged."""

import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fault import calls, forks
from fault.forks import Child, Ran, in_fork, launch, start
from fault.results import differing, result
from fault.stages import FOLDERS, NAMES, STAGES, Places, Stage, before


@dataclass
class Fault:
    """One fault of the campaign, and what became of it."""

    number: int
    kind: str
    stage: str
    seed: int
    how: str = ""  # where and when it struck
    outcome: str = ""
    said: str = ""  # the last line of the command that failed
    why: str = ""  # of a bad outcome
    seconds: float = 0.0
    steps: list[str] = field(default_factory=list)  # commands and their codes


class Unlucky(Exception):
    """A bad outcome; the first word is which."""


@dataclass
class Case:
    """One fault being tried: its folder, its dice, and the reference."""

    fault: Fault
    places: Places
    reference: dict[str, Any]
    folder: Path
    rng: random.Random
    mounted: bool = False
    spoiled: str = ""  # input of the stage that may stay as the fault has left it

    @property
    def stage(self) -> Stage:
        """Give the stage."""
        return STAGES[self.fault.stage]

    @property
    def run(self) -> Path:
        """Give the run folder of this case."""
        return self.folder / "run"

    @property
    def told(self) -> Path:
        """Give the file that an injected error writes its place to."""
        return self.folder / "told"

    def copy(self, state: str) -> None:
        """Take over the run folder as it was after a stage of the reference."""
        shutil.copytree(self.places.state(state), self.run, dirs_exist_ok=True)

    def start(
        self, text: str, prepare: Callable[[], None] | None = None, processes: int = 1
    ) -> Child:
        """Start a command."""
        out = self.folder / f"out-{len(self.fault.steps)}"
        self.fault.steps.append(text)
        command = self.places.command(text, self.run)
        if processes > 1:
            return launch(command, out, processes)
        return start(command, out, prepare)

    def ended(self, child: Child) -> Ran:
        """Wait for a command's end."""
        ran = child.ended()
        self.fault.steps[-1] += f" -> {ran.code}"
        if ran.hung:
            raise Unlucky(f"hung: no end after {forks.BOUND:g} s: {ran.text[-300:]}")
        return ran

    def do(self, text: str, prepare: Callable[[], None] | None = None, processes: int = 1) -> Ran:
        """Run a command to its end."""
        return self.ended(self.start(text, prepare, processes))

    def difference(self) -> list[str]:
        """List what of the run is not as in the reference, up to the stage."""
        names = NAMES[: NAMES.index(self.stage.of) + 1]
        found = in_fork(lambda: {name: result(self.run, name) for name in names})
        return [
            f"{name}: {key}"
            for name in names
            for key in differing(
                found[name],
                self.reference["results"][name],
                name,
                log_cut=self.fault.kind == "cut-log",
                processes=self.stage.processes,
            )
            if f"{FOLDERS.get(name)}/{key}" != self.spoiled
        ]

    def calls(self, index: int, groups: tuple[str, ...]) -> int:
        """Give the number of calls of some groups that a command made undisturbed."""
        counted = self.reference["calls"][self.stage.name][index]
        return sum(counted.get(group, 0) for group in groups)

    def require(self, ran: Ran, *names: str) -> None:
        """Demand that a failure is told in the house's way, with one of some words in it."""
        self.fault.said = last_line(ran.text)
        if "Traceback" in ran.text:
            raise Unlucky(f"unnamed: a traceback: {ran.text[-1500:]}")
        if names and not any(name in ran.text for name in names):
            raise Unlucky(f"unnamed: none of {names} in: {ran.text[-600:]}")

    def remedied(self) -> None:
        """Do as the last failure says, then run what make would, up to the stage."""
        said = self.fault.said
        if "python -m chipgen verify" in said:
            ran = self.do("chipgen verify {run}")
            self.require(ran)
            said = self.fault.said
        if found := re.search(r"delete (that folder|it\b|/\S+)", said):
            named = found[1]
            if not named.startswith("/"):
                named = re.search(r"(/[^:\s]+)", said)[1]
            path = Path(named.rstrip(",;."))
            if self.run not in (path, *path.parents):
                raise Unlucky(f"lost: the remedy is outside the run: {said}")
            self.fault.steps.append(f"delete {path.relative_to(self.run)}")
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        for name in NAMES[: NAMES.index(self.stage.of) + 1]:
            for text in STAGES[name].commands:
                ran = self.do(text)
                if ran.code:
                    raise Unlucky(f"lost: {text}: {ran.text[-600:]}")

    def finish(self, index: int, ran: Ran, remedies: bool = False, repeat: bool = False) -> str:
        """Bring a stage to its end after a fault in one of its commands; gives the outcome."""
        failed = ran.code != 0
        if failed or repeat:
            text = self.stage.commands[index]
            ran = self.do(text, processes=self.stage.processes)
        if ran.code and remedies:
            self.require(ran)
            self.remedied()
        elif ran.code:
            raise Unlucky(f"lost: {ran.text[-600:]}")
        else:
            for text in self.stage.commands[index + 1 :]:
                ran = self.do(text, processes=self.stage.processes)
                if ran.code:
                    raise Unlucky(f"lost: {text}: {ran.text[-600:]}")
        if wrong := self.difference():
            raise Unlucky(f"wrong: {', '.join(wrong[:6])}")
        return "recovered" if failed else "at once"

    def until_command(self) -> int:
        """Set the state before one of the stage's commands, drawn by lot; gives its number."""
        self.copy(before(self.stage.of))
        index = self.rng.randrange(len(self.stage.commands))
        for text in self.stage.commands[:index]:
            if self.do(text).code:
                raise Unlucky(f"lost: {text} failed undisturbed")
        return index


def last_line(text: str) -> str:
    """Give the last line of what a command said, short."""
    lines = [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]
    return lines[-1][:400] if lines else ""


def watch(
    case: Case,
    groups: tuple[str, ...],
    at: int,
    act: Callable[[str, str], None],
    lasting: bool = False,
) -> calls.Watch:
    """Install a watch of the run folder and the data set in this process."""
    folders = f"{case.run}", f"{case.places.data}"
    made = calls.Watch(folders, groups, at, act, lasting)
    made.install()
    return made

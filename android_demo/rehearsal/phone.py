"""The app without its screens: its Kotlin that knows no Android, on its Python, on the real engine.

What Android would bring is played by whoever holds a ``Phone``: taps, the charger, kills.
"""

import sys
import threading
from pathlib import Path
from typing import Any

from . import jvm
from .kotlin import compile_kotlin

APP = Path(__file__).parents[1] / "app/src/main"
KOTLIN = APP / "kotlin/org/seedtune/demo"
PURE = ("Brain.kt", "Conditions.kt", "Curve.kt", "Intake.kt", "Lines.kt", "Trainer.kt")
"""Files that import nothing of Android: what runs here is what the app runs."""
_FAKES = Path(__file__).with_name("fakes")


def app_classes() -> Path:
    """The pure files, compiled, with the files that play Android's part."""
    return compile_kotlin([*(KOTLIN / name for name in PURE), _FAKES])


class Phone:
    """A process of the app. One to a process, and none after ``jvm.leave``."""

    def __init__(self, root: Path, **settings: Any) -> None:
        """
        Args:
            root: the app's folder, as a process before this one left it.
            settings: of runs, in place of the app's.
        """
        import jpype

        if not jpype.isJVMStarted():
            jvm.start(app_classes())
        if str(APP / "python") not in sys.path:
            sys.path.insert(0, str(APP / "python"))
        from seedtune_app.app import App

        self.app = App(str(root), **settings)
        self.reports: list[tuple[str, int, bool, bool]] = []
        """Text, step, active, resting: all that the notification showed."""
        self.checked: list[tuple[int, int]] = []
        """Bytes of bundles checked, and of how many: what the screen shows of it."""
        self._told = threading.Condition()
        brain = jpype.JProxy("org.seedtune.demo.Brain", dict={"call": self._call})
        watcher = jpype.JProxy("org.seedtune.demo.Trainer$Watcher", dict={"show": self._show})
        self.trainer = jpype.JClass("org.seedtune.demo.Trainer")(brain)
        self.trainer.watch(watcher)

    def take_bundle(self, archive: Path) -> str:
        """Check a copied file and use it; what the app's Python answers."""
        import jpype

        def checked(done: Any, total: Any) -> None:
            self.checked.append((int(done), int(total)))

        waiting = jpype.JProxy("org.seedtune.demo.Checking", dict={"checked": checked})
        waiting = jpype.JObject(waiting, "org.seedtune.demo.Checking")
        answer: str = self.app.take_bundle(str(archive), waiting)
        return answer

    def _call(self, name: Any, arguments: Any) -> str:
        import jpype

        given = [str(each) if isinstance(each, jpype.JString) else each for each in arguments]
        found: str = getattr(self.app, str(name))(*given)
        return found

    def _show(self, report: Any) -> None:
        with self._told:
            text, step = str(report.getText()), int(report.getStep())
            self.reports.append((text, step, bool(report.getActive()), bool(report.getResting())))
            self.heard(self.reports[-1])
            self._told.notify_all()

    def heard(self, report: tuple[str, int, bool, bool]) -> None:
        """Called with each report, in the session's thread."""

    def wait(self, holds: Any, seconds: float = 60) -> tuple[str, int, bool, bool]:
        """The first report, of those to come too, for which ``holds`` is true."""
        with self._told:
            place = 0
            while True:
                while place < len(self.reports):
                    if holds(self.reports[place]):
                        return self.reports[place]
                    place += 1
                if not self._told.wait(seconds):
                    raise TimeoutError(f"the last report was {self.reports[-1:]}")

    def learn(self, kind: str, share: float = 1.0, seconds: int = 240) -> str:
        """Learn to the end; the last line."""
        self.trainer.start(kind, share)
        assert self.trainer.join(1000 * seconds)
        return self.reports[-1][0]

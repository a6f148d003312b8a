"""A stand-in for training, and the small sweep that tests of studies make with it."""

import json

from uld_jax.engine import checkpoint, loop, runs, stopping
from uld_jax.errors import UserError

SPEC = "zeroshot:k=4,preset=tiny"
SHORT = ["detector.steps=4", "detector.round_every=2", "eval_every=0", "save_every=0", "log_every=1"]
GRIDS = ["detector.learning_rate=0.1,0.2", "seed=0,1,3"]


class Training:
    """Stands in for `loop.run`: writes what a run leaves, with an error that depends on the config."""

    def __init__(self, monkeypatch):
        self.ran, self.fails, self.stops = [], "", ""
        self.protocol = lambda config: "heads"
        monkeypatch.setattr(loop, "run", self)
        monkeypatch.setattr(checkpoint, "has_final", lambda folder, stage: (folder / "final").exists())
        monkeypatch.setattr(runs, "shapes", lambda *a: None)  # tracing takes longest, and is tested above

    def __call__(self, config, workdir, *, mesh, stop, alone):
        assert not alone
        self.ran.append(workdir.name)
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "config.json").write_text(json.dumps(config.to_dict(), default=str))
        if self.fails and self.fails in workdir.name:
            raise UserError("stage detector: loss is not finite at step 1")
        if self.stops and self.stops in workdir.name:
            stop._flag.set()
            raise stopping.Stopped("stopped in stage detector at step 1, saved; the same command goes on")
        error = config.detector.optimizer.learning_rate * 100 + config.seed
        steps = config.detector.steps
        lines = [
            {"step": s, "stage": "detector", "seconds": 30 * s, "loss": 1 / s, "consistency": s / (1 + config.seed)}
            for s in (1, 2)
        ]
        lines += [{"step": steps, "stage": "detector", "seconds": 90, "forward_nme": 2 * error, "note": "x"}]
        lines += [{"step": steps, "stage": "detector", "seconds": 120, "done": True}]
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (workdir / "eval/test").mkdir(parents=True, exist_ok=True)
        report = {"forward_nme": error, "backward_nme": None, "stability_px": 1234.5, "protocol": self.protocol(config)}
        (workdir / "eval/test/metrics.json").write_text(json.dumps(report))
        (workdir / "final").touch()

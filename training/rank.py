"""Tumour probabilities of an exported model, for ROC curves, and a picture of such curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from training.cases import Scan
from training.picture import drawn
from training.store import place_labels
from trtseg.cli.tables import number
from trtseg.engines import open_engine
from trtseg.engines.base import logits_of
from trtseg.engines.calibration import show
from trtseg.engines.precision import FP32
from trtseg.metrics.ranking import Roc
from trtseg.models import ModelFiles


def probabilities(files: ModelFiles, scan: Scan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probability of tumour, FP32, whether it is tumour, and whether the model calls it liver or tumour.

    All are flat, of the pixels of a scan, whose spacing is known, on the net's grid. Without post-processing; outside
    the liver net's mask the probability is 0, as `label` has it.
    """
    nets, spacing = files.spec.nets, scan.spacing[1:]
    engines = {net.role: open_engine(files, net, precision=FP32.name) for net in nets}
    shown = show(scan.hu, spacing, nets, lambda net, x: logits_of(engines[net.role], x))
    logits = shown[nets[-1].role][1]
    if len(nets) == 1:
        odds = np.exp(logits - logits.max(1, keepdims=True))
        p = odds[:, 2] / odds.sum(1)
        inside = logits.argmax(1) >= 1
    else:
        inside = (shown[nets[0].role][1] > nets[0].logit_threshold)[:, 0]
        p = np.where(inside, 1 / (1 + np.exp(-logits[:, 0])), 0)
    truth = place_labels(scan.label, nets[0].fit_volume(scan.hu, spacing)) == 2
    return p.astype(np.float32).ravel(), truth.ravel(), inside.ravel()


def curve_png(path: Path, curves: dict[str, Roc]) -> None:
    """Draw ROC curves by name, each with the point of its threshold."""
    with drawn(path, figsize=(5, 5)) as axes:
        for name, curve in curves.items():
            fpr, tpr = curve.false_positive_rate, curve.true_positive_rate
            axes.plot(fpr, tpr, label=f"{name}: AUC {number(curve.auc)}")
            if len(fpr):
                best = int(np.argmax(tpr - fpr))
                axes.plot(fpr[best], tpr[best], "ko", markersize=4)
                axes.annotate(f"  {curve.threshold:.2f}", (fpr[best], tpr[best]))
        axes.set(xlabel="false positive rate", ylabel="true positive rate", title="tumour")
        axes.legend(loc="lower right")

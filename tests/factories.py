"""Trials made by hand."""

from thrifty.studies.trial import ArtifactFigure, Drop, InferenceFigure, QualityFigure, Ratio, TrainingFigure, Trial


def trial(id, drop=(0.0, 0.0, 0.0), seconds=10.0, speedup=(1.0, 1.0, 1.0), size=1000, **fields):
    """A trial that was done, of one workload and target; a figure that is None was not measured."""
    quality = drop and QualityFigure("accuracy", True, 0.9 - drop[0], 0.9, Drop(*drop))
    given = {
        "workload": "digits", "workload_hash": "ab12", "recipe": f"train(steps={id})", "seed": 0,
        "target": {"device": "cpu"}, "status": "done", "quality": quality or None,
        "training": seconds and TrainingFigure(seconds, None, None, None, None, None),
        "inference": speedup and InferenceFigure("SingleStream", 0.01, 0.02, Ratio(*speedup), Ratio(None), None, None,
                                                 None),
        "artifact": size and ArtifactFigure("model", size, True),
    }
    return Trial(str(id), **(given | fields))

"""From a folder of labelled pictures to a classifier that one can trust.

The flow, a file in `stages/` for each step:

    download → split → embed → train_baseline → train → evaluate → report
    backbone ─────────↗

`dvc.yaml` wires the steps, `params.yaml` tunes them, `commands/` holds what a person types.
"""

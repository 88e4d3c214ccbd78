"""nnU-Net v2: its predictor, reader, resampling and export, with a 2-D configuration of the size of the model's nets.

``--net both`` (default) gives the predictor the model's two nets as its network. ``--net planned`` is one net with
three classes as nnU-Net itself would build it at equal width and depth, untrained: instance norm, leaky ReLU, strides
instead of pooling. Its labels are background, its time is real.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.peers import nets, serve

CLASS = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
#: Width and depth of the planned net: it has 3.0 billion multiplications a slice, both shipped nets together 2.7.
PLANNED = (16, 4)
RESAMPLING = {"is_seg": False, "order_z": 0, "force_separate_z": None}  # nnU-Net's own defaults


def architecture(width: int, depth: int) -> dict[str, Any]:
    """A network with the layers that nnU-Net's planner takes."""
    stages = depth + 1
    return {
        "network_class_name": CLASS,
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [width * 2**level for level in range(stages)],
            "conv_op": "torch.nn.modules.conv.Conv2d",
            "kernel_sizes": [[3, 3]] * stages,
            "strides": [[1, 1]] + [[2, 2]] * depth,
            "n_conv_per_stage": [2] * stages,
            "n_conv_per_stage_decoder": [2] * depth,
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def plans(spec: dict[str, Any], net: dict[str, Any]) -> dict[str, Any]:
    """Plans with the pixels, the patch and the window of the liver net: mapped to [0, 1], since nnU-Net pads with 0."""
    low, high = spec["window"]
    return {
        "dataset_name": "Dataset001_Liver",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": low, "std": high - low, "percentile_00_5": low, "percentile_99_5": high}
        },
        "configurations": {
            "2d": {
                "data_identifier": "nnUNetPlans_2d",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 12,
                "patch_size": list(spec["size"]),
                "spacing": [spec["pixel_mm"]] * 2,
                "normalization_schemes": ["CTNormalization"],
                "use_mask_for_norm": [False],
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": {**RESAMPLING, "order": 3},
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_seg_kwargs": {**RESAMPLING, "is_seg": True, "order": 1},
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                "resampling_fn_probabilities_kwargs": {**RESAMPLING, "order": 1},
                "batch_dice": True,
                "architecture": net,
            }
        },
    }


def planned(net: dict[str, Any]) -> nn.Module:
    """The network of plans, by nnU-Net's own function."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    imports = net["_kw_requires_import"]
    made: Any = get_network_from_plans(
        net["network_class_name"], net["arch_kwargs"], imports, 1, 3, deep_supervision=False
    )
    with torch.no_grad():  # background everywhere: labels at random would make writing slow
        made.decoder.seg_layers[-1].weight.zero_()
        made.decoder.seg_layers[-1].bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    network: nn.Module = made.eval()
    return network


def main() -> None:
    options = serve.parser()
    options.add_argument("--net", choices=("both", "planned"), default="both")
    options.add_argument("--mirroring", action="store_true")
    args = options.parse_args()
    for name in (
        "nnUNet_raw",
        "nnUNet_preprocessed",
        "nnUNet_results",
    ):  # it asks for them, and does not use them
        os.environ.setdefault(name, os.devnull)
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    torch.set_num_threads(args.threads)
    specs = nets.specs(args.model)
    files = [(args.model / f"{spec['role']}.onnx").read_bytes() for spec in specs]
    of_plans = architecture(*PLANNED)
    net = planned(of_plans) if args.net == "planned" else nets.both(files, specs)
    manager = PlansManager(plans(specs[0], of_plans))
    about = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "tumour": 2},
        "file_ending": ".nii.gz",
    }
    predictor = nnUNetPredictor(use_mirroring=args.mirroring, device=torch.device("cpu"), allow_tqdm=False)
    predictor.manual_initialization(
        net, manager, manager.get_configuration("2d"), [net.state_dict()], about, "nnUNetTrainer", (0, 1)
    )

    def label(source: Path, target: Path, job: dict[str, Any]) -> None:
        # In this process: predict_from_files starts processes, which takes longer for a single CT.
        predictor.predict_from_files_sequential([[str(source)]], [str(target).removesuffix(".nii.gz")])

    serve.serve(label, "nnunetv2", "torch", "SimpleITK", "numpy")


if __name__ == "__main__":
    main()

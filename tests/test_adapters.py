"""The operators for other frameworks, in applications of these frameworks, where they are installed."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
import training_data as made

from trtseg.phantom import abdomen


def sdk(name):
    """The SDK, or a skip with the reason: it may be installed and lack the CUDA runtime that it is linked with."""
    return pytest.importorskip(name, exc_type=ImportError)


def test_holoscan(segmenter):
    sdk("holoscan.core")
    from holoscan.conditions import CountCondition
    from holoscan.core import Application, Operator

    from trtseg.adapters.holoscan import LiverOperator

    ct = abdomen(shape=(8, 64, 80), spacing=(10.0, 4.0, 4.0)).ct
    messages = [*((ct[z], 10.0 * z) for z in (3, 1, 0, 2, 7, 6, 5, 4)), None] * 2
    got = {"labels": [], "result": []}

    class Scanner(Operator):
        def setup(self, spec):
            spec.output("slice")

        def compute(self, op_input, op_output, context):
            op_output.emit(messages.pop(0), "slice")

    class Screen(Operator):
        def setup(self, spec):
            spec.input("in")

        def compute(self, op_input, op_output, context):
            got[self.name].append(op_input.receive("in"))

    class App(Application):
        def compose(self):
            scanner = Scanner(self, CountCondition(self, len(messages)), name="scanner")
            shape, spacing = ct.shape[1:], (4.0, 4.0)
            liver = LiverOperator(self, segmenter=segmenter, shape=shape, spacing=spacing, name="liver")
            self.add_flow(scanner, liver, {("slice", "slice")})
            for port in got:
                self.add_flow(liver, Screen(self, name=port), {(port, "in")})

    App().run()
    expected = segmenter.segment(ct, spacing=(10.0, 4.0, 4.0))
    for result in got["result"]:
        assert (result.labels == expected.labels).all()
        assert result.lesions == expected.lesions
    assert len(got["result"]) == 2
    nets = segmenter.label(ct, spacing=(4.0, 4.0))
    told = [one for message in got["labels"] for one in message]
    assert len(told) == 16
    assert all((labels == nets[round(position / 10)]).all() for position, labels in told)


def test_monai_deploy(segmenter, tmp_path):
    sdk("monai.deploy.core")
    from holoscan.conditions import CountCondition
    from monai.deploy.core import Application, Operator
    from monai.deploy.operators.dicom_data_loader_operator import DICOMDataLoaderOperator
    from monai.deploy.operators.dicom_series_selector_operator import DICOMSeriesSelectorOperator
    from monai.deploy.operators.dicom_series_to_volume_operator import DICOMSeriesToVolumeOperator

    from trtseg.adapters.monai_deploy import LiverOperator

    ct, got = made.phantom(0).ct, {}
    for z, plane in enumerate(ct):
        path = tmp_path / f"{z}.dcm"
        made.save_dicom(path, plane, 100 + z * made.SPACING[0], series="1.2.3")
        dataset = pydicom.dcmread(path)
        dataset.PixelSpacing = [made.SPACING[1]] * 2  # the SDK takes one for the other where they differ
        dataset.StudyInstanceUID, dataset.SeriesNumber, dataset.InstanceNumber = "1.2", 1, z
        dataset.save_as(path)

    class Screen(Operator):
        def setup(self, spec):
            spec.input("in")

        def compute(self, op_input, op_output, context):
            got[self.name] = op_input.receive("in")

    class App(Application):
        def compose(self):
            loader = DICOMDataLoaderOperator(
                self, CountCondition(self, 1), input_folder=tmp_path, must_load=True, name="loader"
            )
            selector = DICOMSeriesSelectorOperator(self, rules="", name="selector")
            volume = DICOMSeriesToVolumeOperator(self, name="volume")
            liver = LiverOperator(self, segmenter=segmenter, name="liver")
            self.add_flow(loader, selector, {("dicom_study_list", "dicom_study_list")})
            self.add_flow(selector, volume, {("study_selected_series_list", "study_selected_series_list")})
            self.add_flow(volume, liver, {("image", "image")})
            self.add_flow(liver, Screen(self, name="image"), {("seg_image", "in")})
            self.add_flow(liver, Screen(self, name="result"), {("result", "in")})

    App().run()
    expected = segmenter.segment(tmp_path)
    assert set(np.unique(expected.labels)) == {0, 1, 2}
    assert (got["image"].asnumpy() == expected.labels).all()
    assert got["result"].liver_ml == pytest.approx(expected.liver_ml)

"""The tests of `_core.Net` once more, under AddressSanitizer and UBSan: nothing is read or written beside the maps."""

from pathlib import Path

import pytest

from trtseg import _core

pytestmark = pytest.mark.skipif(not _core.Net.is_supported(), reason="this processor has no AVX2 and FMA")

HERE = Path(__file__).parent


@pytest.mark.parametrize("names", [("test_net.py", "test_net_refusals.py"), ("test_net_int8.py",)])
def test_nothing_is_read_or_written_beside_the_maps(shim, tmp_path, names):
    files = [str(HERE / name) for name in names]
    script = tmp_path / "watched.py"
    script.write_text(f"import pytest, sys\nsys.exit(pytest.main(['-qs', *{files!r}]))\n")
    done = shim.run_script(script)
    assert done.returncode == 0, done.stdout + done.stderr

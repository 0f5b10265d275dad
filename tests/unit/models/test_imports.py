"""Packages that transformers would import and that no worker uses."""

from __future__ import annotations

import subprocess
import sys


def test_an_update_leaves_out_what_it_does_not_use_and_others_can_still_import_it() -> None:
    code = (
        "import sys, core_hpc.phases; core_hpc.phases._step('update'); "
        "from transformers import AutoModelForCausalLM, AutoTokenizer; "
        "assert not {'sklearn', 'scipy', 'pandas'} & set(sys.modules); "
        "import sklearn.metrics, sentence_transformers"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True)

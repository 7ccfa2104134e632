"""The planted faults of the chapter: each found, what is right passed, and what slips through."""

import torch

from studies.planted_faults import FACTOR, FORGOTTEN, ONE_HEAD, attention_report, decay_report, reduction_report


def test_each_fault_is_found_and_what_is_right_is_not():
    assert attention_report("").verdict == "lawful"
    assert {check.law for check in attention_report(FORGOTTEN).broken} == {"sum of dK over keys = 0"}
    assert reduction_report(reduced=True).verdict == "lawful"
    assert reduction_report(reduced=False).verdict == "broken"
    assert decay_report(decoupled=True).verdict == "lawful"
    assert decay_report(decoupled=False).verdict == "broken"


def test_what_slips_through():
    assert attention_report(FACTOR).verdict == "lawful"
    assert attention_report(ONE_HEAD).verdict == "broken"
    assert attention_report(ONE_HEAD, torch.bfloat16).verdict != "broken"

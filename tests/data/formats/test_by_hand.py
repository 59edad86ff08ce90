from __future__ import annotations

import argparse

import real_images


def test_files_are_read_as_by_hand_and_all_of_a_mixed_folder_are_read_or_named() -> None:
    figures, shown = real_images.formats(argparse.Namespace(quick=True))
    assert shown["formats"]["differing"] == []
    assert figures == {"formats": 1.0}

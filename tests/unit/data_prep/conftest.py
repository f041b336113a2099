"""For the tests of the data stage."""

import os

import pytest


@pytest.fixture(autouse=True, scope="package")
def no_waiting_for_the_disk():
    """These tests write thousands of small files, and none pulls the plug."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield

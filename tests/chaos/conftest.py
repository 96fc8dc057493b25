"""The inputs of the trainings that are about to be hurt: those of the distributed tests."""

from tests.distributed.conftest import inputs

__all__ = ["inputs"]

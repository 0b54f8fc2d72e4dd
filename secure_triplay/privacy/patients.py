"""The patient as the unit of DP-SGD: all records of one person are drawn, clipped and protected together.

One step: each patient is drawn independently at the public rate; of a drawn patient at most `most` records
are used; their gradients are summed; that sum is clipped to C, once.

Which records: a fresh uniform choice among the patient's own each time the patient is drawn, so that over the
rounds all of them teach. Why that is allowed: the choice looks at no other patient, so one patient still adds
one vector x with |x| <= C, and adds it with the sampling rate's chance q. For each x the step is the mixture
(1 - q) N(f, s) + q N(f + x, s) against N(f, s), the pair that the accountant composes at its worst, |x| = C. A
random x makes it a mixture of such pairs, and hockey-stick divergences are jointly convex: no mixture is
worse than its worst part. A fixed choice would be as private and would leave the other records unused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secure_triplay.errors import DataError
from secure_triplay.privacy.noise import NoiseSource


@dataclass(frozen=True, repr=False)
class Patients:
    """Who owns which of a site's records: for each patient, the indices of their records, (k,) int64 each.

    It holds what the site must not tell, so it has no repr and stays where the records are.
    """

    records: tuple[Tensor, ...]

    @classmethod
    def of(cls, patients: Tensor | None, n_records: int) -> Patients:
        """From each record's patient, (n,) int64. Raises DataError where it is missing or does not fit."""
        if patients is None:
            raise DataError(
                "the study protects patients, and these records do not say whose they are",
                where="training",
                fix="add a column patient_id to the site's manifest",
            )
        if patients.dtype != torch.int64 or patients.shape != (n_records,):
            raise DataError(
                f"patients {tuple(patients.shape)} {patients.dtype} do not fit {n_records:,} records",
                where="training",
                fix="give one int64 code for each record, equal where the patient is",
            )
        order = torch.argsort(patients, stable=True)
        _, counts = torch.unique_consecutive(patients[order], return_counts=True)
        return cls(tuple(torch.split(order, counts.tolist())))

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        return "<Patients>"

    def parts(
        self, drawn: Tensor, most: int, physical_batch_size: int, noise: NoiseSource
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The drawn patients' records, in parts that fit into memory: (records (r,), counts (p,)), both int64.

        Records of one patient follow each other, `counts` of them for each patient, `most` at the most, and
        no patient is in two parts: a sum clipped in two halves could be twice as long. Nobody drawn gives one
        part that is empty.
        """
        waiting: list[Tensor] = []
        room = physical_batch_size
        for patient in drawn.tolist():
            own = self.records[patient]
            if len(own) > most:
                own = own[torch.from_numpy(noise.subset(len(own), most))]
            if len(own) > room:
                yield _joined(waiting)
                waiting, room = [], physical_batch_size
            waiting.append(own)
            room -= len(own)
        yield _joined(waiting)


def sum_per_patient(weights: Sequence[Any], counts: Tensor) -> None:
    """Turn each weight's `grad_sample`, (r, *shape) a record, into (p, *shape) a patient, in place.

    `counts` (p,) says how many records in a row belong to each patient. One weight after the other, so that
    only one is ever held twice.
    """
    patient_of_row = torch.repeat_interleave(torch.arange(len(counts)), counts)
    for weight in weights:
        summed = weight.new_zeros((len(counts), *weight.shape), dtype=torch.float32)
        weight.grad_sample = summed.index_add_(0, patient_of_row, weight.grad_sample)


def _joined(own: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    none = torch.zeros(0, dtype=torch.int64)
    return torch.cat([none, *own]), torch.tensor([len(part) for part in own], dtype=torch.int64)

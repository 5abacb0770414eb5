"""Combine Datasets: several datasets as one, each seen as often as its share says."""

from __future__ import annotations

from typing import Any

from ..ltx2_train.errors import ConfigError
from . import handles, host
from .host import io

TITLE = "Combine Datasets"

MOST = 4


class CombineDatasets(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LTX2T_CombineDatasets",
            display_name=TITLE,
            category="LTX-2 training",
            description="Makes one dataset of up to four: clips of two folders, clips and recordings, a small set that "
            "is to be seen more often.",
            search_aliases=["dataset", "merge", "join", "mix", "concat", "repeats", "balance", "lora", "train"],
            inputs=[
                *(
                    handles.Dataset.Input(
                        f"dataset_{number}",
                        optional=number > 1,
                        tooltip="A dataset of a loader, or of another Combine Datasets.",
                    )
                    for number in range(1, MOST + 1)
                ),
                *(
                    io.Int.Input(
                        f"share_{number}",
                        default=1,
                        min=1,
                        max=1000,
                        tooltip=f"How often each sample of dataset_{number} is seen in one pass over the data, "
                        "times its own repeats. The node shows what part of the whole that makes.",
                    )
                    for number in range(1, MOST + 1)
                ),
            ],
            outputs=[
                handles.Dataset.Output("dataset", display_name="dataset", tooltip="All of them, for Prepare Dataset."),
                io.Int.Output("count", display_name="count", tooltip="Number of media files in all."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        dataset_1: handles.ClipFolder,
        share_1: int,
        share_2: int,
        share_3: int,
        share_4: int,
        dataset_2: handles.ClipFolder | None = None,
        dataset_3: handles.ClipFolder | None = None,
        dataset_4: handles.ClipFolder | None = None,
    ) -> io.NodeOutput:
        with host.training_job(TITLE):
            datasets, shares = (dataset_1, dataset_2, dataset_3, dataset_4), (share_1, share_2, share_3, share_4)
            given = list(zip(datasets, shares, strict=True))
            for number, (part, share) in enumerate(given, 1):
                if part is None and share != 1:
                    raise ConfigError(
                        f"share_{number} is {share}, and nothing is connected to `dataset_{number}`. Connect a "
                        "dataset, or put it back to 1."
                    )
            parts = [(part, share) for part, share in given if part is not None]
            nouns = {part.noun for part, _ in parts}
            combined = handles.ClipFolder(
                parts[0][0].folder,
                tuple(_shared(entry, share) for part, share in parts for entry in part.entries),
                sum(part.count for part, _ in parts),
                nouns.pop() if len(nouns) == 1 else "files",
                " + ".join(part.title for part, _ in parts),
                sum(part.weight * share for part, share in parts),
            )
            told = " | ".join(
                f"{part.count} {part.noun} in {part.title} x {share}: {part.weight * share / combined.weight:.0%}"
                for part, share in parts
            )
            host.ComfyEvents(cls.hidden.unique_id).finish("finished", told)
            return io.NodeOutput(combined, combined.count)


def _shared(entry: Any, share: int) -> dict[str, Any]:
    return {**entry, "num_repeats": int(entry.get("num_repeats", 1)) * share}

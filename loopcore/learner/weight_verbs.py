"""Where weights come from and go to, and all else that a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loopcore import checkpoint
from loopcore.errors import WeightsError
from loopcore.handles.parameters import mismatches, renamed
from loopcore.protocols import LearnerParts
from loopcore.state import settle


class WeightVerbs:
    """A base of `Learner`: weights and checkpoints, written and read, and moved to a device."""

    def export_weights(self: LearnerParts) -> dict[str, np.ndarray[Any, Any]]:
        """All parameters and buffers of all models, as copies by full path.

        Example:
            >>> import loopcore as lc
            >>> lc.testing.toy_learner().export_weights()
            {'w': array([0.])}
        """
        paths = (*self.all_params.names, *self.buffers.names)
        return {path: np.array(self.to_host(leaf)) for path, leaf in self.backend.snapshot(paths).items()}

    def import_weights(
        self: LearnerParts,
        weights: Mapping[str, Any],
        names: Mapping[str, str | None] | Callable[[str], str | None] | None = None,
    ) -> None:
        """Load what `export_weights` gave, here or on another backend; all is checked before anything is written.

        Args:
            weights: arrays by full path, one for every parameter and buffer.
            names: what the weights are called in this model, where they came under other names: a dict from their
                name to a path of this model, or a function of their name. None leaves one out. Names that a dict
                does not have stay.

        Raises:
            WeightsError: names, shapes or dtypes differ; lists all differences.

        Example:
            >>> import loopcore as lc, numpy as np
            >>> learner = lc.testing.toy_learner()
            >>> learner.import_weights({"linear.w": np.array([2.0])}, names={"linear.w": "w"})
            >>> learner.params.value
            {'w': array([2.])}
        """
        if not isinstance(weights, Mapping):
            raise WeightsError(f"weights is a dict from path to array, as export_weights gives, not {type(weights)}")
        weights = renamed(weights, names)
        paths = {*self.all_params.names, *self.buffers.names}
        problems = [f"  {path}: the model has no such weight" for path in weights if path not in paths]
        problems += [f"  {path}: missing" for path in sorted(paths - set(weights))]
        present = {path: np.asarray(value) for path, value in weights.items() if path in paths}
        problems += mismatches(self.backend, present)
        if problems:
            raise WeightsError("the weights do not fit the model, nothing was loaded:\n" + "\n".join(problems))
        self.backend.set(present)

    def save(self: LearnerParts, path: str | Path, *, only_finite: bool = False, **more: Any) -> Path:
        """Write a checkpoint: all that a run goes on from with the bits it would have had. Saving changes nothing.

        That is the weights, the state and the hyperparameters of every optimizer, ``hyper``, the seed and the counts
        that draws follow from, what callbacks carry and keep, the place of every loader that has ``state_dict`` and
        ``load_state_dict``, and the history: all values by epoch, and by step as many as are kept, at most 16,384 of
        each metric. Under ``data`` the manifest says for each loader how a run goes on: ``"exact"`` with the batch
        that would have come next; ``"epoch"``, a list whose epoch was left in the middle and begins again; ``"none"``,
        a loader without a state, where loopcore cannot know. Of an epoch
        that is not over, its sums and what its phase carries are not kept.

        One file of safetensors with a JSON manifest. It is written under another name, synced and renamed: under its
        own name it is always whole, and an older file of that name is there until the new one is.

        Args:
            path: of the file.
            only_finite: raise, where weights or what an optimizer keeps are NaN or infinite; else it is a warning.
            **more: JSON values for the manifest, under names that it does not have.

        Returns:
            The path.

        Raises:
            CheckpointError: the system refused, a value is no JSON, or a step is running; an older file is as it was.
            NotFiniteError: see ``only_finite``.

        Example:
            >>> import loopcore as lc, tempfile
            >>> learner = lc.testing.toy_learner()
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     result = learner.fit(1)
            ...     path = learner.save(f"{folder}/run.safetensors")
            ...     other = lc.testing.toy_learner()
            ...     other.load(path)
            >>> other.params.value == learner.params.value, other.history == learner.history
            (True, True)
        """
        return checkpoint.save(self, path, only_finite=only_finite, **more)

    def load(self: LearnerParts, path: str | Path) -> None:
        """Go on from what `save` wrote for a learner of the same models, optimizers, callbacks and backend.

        Everything is taken, the seed too, or nothing is. A learner may lack the data of the first one. A callback that
        keeps a state and joins only now is added after the load.

        Args:
            path: of the file. Nothing in it is executed.

        Raises:
            CheckpointError: it is no checkpoint, damaged, or does not fit; lists what differs, and nothing was loaded.
                Or an epoch of this learner is running, which would go on with other weights.

        Example:
            >>> import loopcore as lc, tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     path = lc.testing.toy_learner(optimizer=lc.Adam(0.1)).save(f"{folder}/run.safetensors")
            ...     try:
            ...         lc.testing.toy_learner(optimizer=lc.AdamW(0.1)).load(path)
            ...     except lc.errors.CheckpointError as error:
            ...         print(str(error).splitlines()[1].strip())
            optimizers: AdamW here, Adam in the checkpoint
        """
        checkpoint.load(self, path)

    def save_model(self: LearnerParts, path: str | Path) -> Path:
        """Write the weights alone, as `save` does.

        Example:
            >>> import loopcore as lc, tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     path = lc.testing.toy_learner().save_model(f"{folder}/model.safetensors")
            ...     lc.testing.toy_learner().load_model(path)
        """
        return checkpoint.save_weights(self, path)

    def load_model(self: LearnerParts, path: str | Path) -> None:
        """Load the weights of a file that `save` or `save_model` wrote, on any backend with the same names and shapes.

        Raises:
            CheckpointError: it is no checkpoint, or damaged.
            WeightsError: names, shapes or dtypes differ; lists all differences.
        """
        self.import_weights(checkpoint.load_weights(path))

    def to_device(self: LearnerParts, device: Any) -> None:
        """Move models, buffers, optimizer state and what callbacks carry to a device; nothing of it is lost."""
        self.backend.to_device(device)
        settle(self.shared)
        shared = vars(self.shared)
        callbacks = getattr(self, "callbacks", ())  # there are none yet where one of them does this when it joins
        carried = (path.removeprefix("shared.") for callback in callbacks for path in callback.carries)
        shared.update({name: self.backend.convert(shared[name]) for name in carried if name in shared})
        self.runs.forget_runners()  # they keep inputs of their programs on the device

"""Other libraries on PyTorch, each in one function that makes its variants.

They need an environment of their own, since they pin what they like:

    pip install torch==2.13.0 -e . pytorch-ignite lightning skorch
"""

from __future__ import annotations

import importlib
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch

from benchmarks.models.bench import Variant

Made: TypeAlias = Callable[[], Any]
Loss: TypeAlias = Callable[..., Any]


def variants(
    model: Made, loss_fn: Loss, optimizer: Callable[[Any], Any], threads: int
) -> tuple[list[Variant], list[str]]:
    """All installed peers, and the names of the others with the reason.

    Args:
        model: makes the model with its first weights.
        loss_fn: ``loss_fn(y_pred, ys)``.
        optimizer: makes the optimizer of a model.
        threads: of torch; a thread of its own has to be told again.
    """
    found: list[Variant] = []
    absent: list[str] = []
    for package, make in (("ignite", _ignite), ("lightning", _lightning), ("skorch", _skorch)):
        try:
            library = importlib.import_module(package)
        except ImportError as error:
            absent.append(f"{package} ({error})")
            continue
        found += make(library, model, loss_fn, optimizer, threads)
    return found, absent


def _ignite(ignite: Any, model: Made, loss_fn: Loss, optimizer: Callable[[Any], Any], threads: int) -> list[Variant]:
    engine = importlib.import_module("ignite.engine")
    metrics = importlib.import_module("ignite.metrics")

    def trainer(measured: bool) -> Callable[[Sequence[Any]], object]:
        made = model()
        found = engine.create_supervised_trainer(
            made, optimizer(made), loss_fn, output_transform=lambda x, y, y_pred, loss: (y_pred.detach(), y, loss)
        )
        if measured:
            metrics.Accuracy(output_transform=lambda output: output[:2]).attach(found, "accuracy")
            metrics.Average(output_transform=lambda output: output[2].detach()).attach(found, "loss")
        return lambda block: found.run(block, max_epochs=1)

    return [Variant("ignite", trainer(False)), Variant("ignite + metrics", trainer(True))]


def _lightning(
    lightning: Any, model: Made, loss_fn: Loss, optimizer: Callable[[Any], Any], threads: int
) -> list[Variant]:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self, logs: bool) -> None:
            super().__init__()
            self.model = model()
            self.logs = logs

        def training_step(self, batch: Any, index: int) -> Any:
            y_pred = self.model(batch[0])
            loss = loss_fn(y_pred, batch[1])
            if self.logs:
                accuracy = (y_pred.argmax(-1) == batch[1]).float().mean()
                self.log_dict({"loss": loss.detach(), "accuracy": accuracy}, on_step=False, on_epoch=True)
            return loss

        def configure_optimizers(self) -> Any:
            return optimizer(self.model)

    def fed(logs: bool) -> _Fed:
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)

        def fit(batches: Any) -> None:
            torch.set_num_threads(threads)
            trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", devices=1, barebones=not logs, **quiet)
            trainer.fit(Module(logs), batches)

        return _Fed(fit)

    bare, logging_too = fed(False), fed(True)
    return [Variant("lightning", bare, bare.close), Variant("lightning + log", logging_too, logging_too.close)]


def _skorch(skorch: Any, model: Made, loss_fn: Loss, optimizer: Callable[[Any], Any], threads: int) -> list[Variant]:
    net = skorch.NeuralNet(
        model(),
        criterion=torch.nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=optimizer(model()).param_groups[0]["lr"],
        train_split=None,
        verbose=0,
    ).initialize()

    def run(block: Sequence[Any]) -> None:  # what its fit_loop does for each epoch
        net.notify("on_epoch_begin", dataset_train=None, dataset_valid=None)
        net.run_single_epoch(block, training=True, prefix="train", step_fn=net.train_step)
        net.notify("on_epoch_end", dataset_train=None, dataset_valid=None)

    return [Variant("skorch", run)]


class _Fed:
    """A fit in a thread of its own that gets its batches block by block: it starts up once, outside of the clock.

    Args:
        fit: trains on an iterable with a length until that ends.
    """

    def __init__(self, fit: Callable[[Any], None]) -> None:
        self._batches: Sequence[Any] | None = ()
        self._wanted, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(fit,), daemon=True)
        self._thread.start()

    def _run(self, fit: Callable[[Any], None]) -> None:
        try:
            fit(self)
        except BaseException as error:
            self._error = error
        finally:
            self._done.release()

    def __len__(self) -> int:
        return 2**40  # of unknown length it would be asked for a batch more than it may give

    def __iter__(self) -> Iterator[Any]:
        while True:
            self._wanted.acquire()
            if self._batches is None:
                return
            yield from self._batches
            self._done.release()

    def __call__(self, block: Sequence[Any]) -> None:
        self._batches = block
        self._wanted.release()
        self._done.acquire()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the fit."""
        self._batches = None
        self._wanted.release()
        self._thread.join()

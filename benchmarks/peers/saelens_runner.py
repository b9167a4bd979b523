"""SAELens: CacheActivationsRunner, which writes a Hugging Face Arrow data set for one hook in one run.

Several blocks take as many runs, each with forwards of its own (they stop after the hook's block). The network is the
runner's `AutoModelForCausalLM` kind; the data are token ids. The buffer is a divisor of the data, because the runner
fills its last buffer with samples from the beginning.
"""

import logging

import datasets
import numpy as np
import torch
from child import arguments, serve
from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig

options = arguments()
torch.set_num_threads(options["threads"])
datasets.disable_progress_bars()
logging.disable(logging.WARNING)
ids = np.load(options["ids"])
rows = datasets.Dataset.from_dict({"input_ids": ids.tolist()})
n_samples, n_positions = ids.shape


def _runner(block: int) -> CacheActivationsRunner:
    name = f"transformer.h.{block}"
    token_bytes = options["width"] * 4
    return CacheActivationsRunner(
        CacheActivationsRunnerConfig(
            dataset_path="token ids",
            model_name=options["model"],
            model_class_name="AutoModelForCausalLM",
            model_batch_size=options["batch"],
            hook_name=name,
            d_in=options["width"],
            training_tokens=n_samples * n_positions,
            context_size=n_positions,
            new_cached_activations_path="unused",
            shuffle=False,
            dtype="float32",
            device="cpu",
            buffer_size_gb=(options["buffer"] * n_positions + 0.5) * token_bytes / 1e9,
            prepend_bos=False,
            streaming=False,
        ),
        override_dataset=rows,
    )


runners = {block: _runner(block) for block in options["blocks"]}


def task(out: str) -> None:
    """One data set per block."""
    for block, runner in runners.items():
        runner.cfg.new_cached_activations_path = f"{out}/{block}"
        runner.activations_store.iterable_sequences = runner.activations_store._iterate_tokenized_sequences()
        runner.run()


def read(out: str, to: str, samples: int) -> None:
    """Read back the data sets of the last run."""
    found = []
    for block, runner in runners.items():
        data = datasets.load_from_disk(f"{out}/{block}").with_format("numpy")
        if len(data) != n_samples:
            raise RuntimeError(f"SAELens wrote {len(data)} of {n_samples} samples")
        found.append(np.asarray(data[:samples][runner.cfg.hook_name]))
    values = np.stack(found).astype(np.float32)
    np.save(to, values.reshape(len(found), -1, values.shape[-1]))


serve(task, read)

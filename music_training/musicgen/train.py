"""Trains a codec or a language model with AudioCraft: ``python scripts/train_audiocraft.py solver=musicgen model=lm/mini ...``

Arguments are Hydra overrides of ``model_config/audiocraft``. Paths are relative to the outputs root. A run lies in
``outputs/training/<run>``: the one that ``run=NAME`` says, else the one with the same configuration and manifests,
else a new one. A run is never continued with another configuration or other data than it was begun with. Under
torchrun every process runs this same command, on several machines with the same outputs folder:
``torchrun --nnodes 2 --nproc_per_node 4 --rdzv_backend c10d --rdzv_endpoint HOST:29500 scripts/train_audiocraft.py ... run=NAME``.

SIGTERM ends a run with a checkpoint and exit code 75 after the update under way; the same command continues it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from .. import config, files, parallel, runs
from ..errors import Interrupted, UserError, run_command
from . import audiocraft_compat, finetune

if TYPE_CHECKING:
    from dora import XP
    from dora.hydra import HydraMain
    from omegaconf import DictConfig

# Settings that change where or how fast a run computes, not what it computes.
_NOT_IDENTITY = ("run", "device", "num_threads", "mp_start_method", "efficient_attention_backend", "show", "each_epoch", "dora", "slurm")
_NOT_IDENTITY_NESTED = ("checkpoint", "logging", "tensorboard", "wandb", "profiler", "deadlock", "datasource")


@cache
def dora_main() -> HydraMain:
    """The Dora main: its experiments are this project's run folders, and a run's name is its signature."""
    audiocraft_compat.install()
    from dora import get_xp
    from dora.hydra import HydraMain
    from dora.link import Link

    class RunMain(HydraMain):
        def get_xp(self, argv: list[str]) -> XP:
            xp = super().get_xp(argv)
            if xp.cfg.run:
                xp.sig = xp.cfg.run
                xp.link = Link(xp.folder / self.dora.history)
            return xp

        def _main(self) -> None:  # the configuration is composed already; hydra.main would do it again
            self.main(get_xp().cfg)

    tree = os.path.relpath(audiocraft_compat.HYDRA_TREE, Path(__file__).parent)
    main = RunMain(_train, config_name="config", config_path=tree, version_base="1.3")
    main.dora.dir, main.dora.xps = files.outputs_root(), runs.folder().name
    return main


def compose(overrides: list[str]) -> DictConfig:
    """The resolved configuration for Hydra overrides; UserError in one line for a bad one."""
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    main = dora_main()
    try:
        xp = main.get_xp(overrides)
        OmegaConf.resolve(xp.cfg)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explain(overrides, main, error)) from None
    base, _ = main._get_base_config(overrides)
    for key, value in xp.delta:
        default = OmegaConf.select(base, key)
        if isinstance(default, int | float) and not isinstance(value, int | float | None):
            raise UserError(
                f"{key}={value}: expected {'true or false' if isinstance(default, bool) else 'a number'}, as in {key}={default}"
            )
    return xp.cfg


def signature(cfg: DictConfig) -> str:
    """What identifies a run: a digest of its configuration and its data, not of where or how fast it runs."""
    from omegaconf import OmegaConf

    content = OmegaConf.to_container(cfg, resolve=True)
    for key in (*_NOT_IDENTITY, *_NOT_IDENTITY_NESTED):
        content.pop(key, None)
    content["dataset"].pop("num_workers", None)
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def data_digest(cfg: DictConfig) -> str:
    """Digest of the manifests that a configuration names; UserError where one is missing or empty."""
    digests = []
    for split in ("train", "valid", "evaluate", "generate"):
        folder = cfg.datasource.get(split)
        if not folder:
            continue
        manifest = next((path for name in ("data.jsonl", "data.jsonl.gz") if (path := files.absolute(folder) / name).is_file()), None)
        if manifest is None or not manifest.stat().st_size:
            raise UserError(f"datasource.{split}={folder}: no manifest data.jsonl there; run 03_segment_audio first")
        digests.append([split, files.digest(manifest)])
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:16]


def open_run(cfg: DictConfig) -> Path:
    """The run folder for a configuration: named by ``cfg.run``, found by its signature, or new."""
    sig = signature(cfg)
    if cfg.run and (runs.folder() / cfg.run).is_dir():
        run = runs.folder() / cfg.run
        known = runs.read_metadata(run).get("signature")
        if known not in (None, sig):
            raise UserError(f"run {cfg.run}: was begun with another configuration or other data; give another run name")
    else:
        same = [row["path"] for row in runs.listing() if row.get("signature") == sig] if not cfg.run else []
        run = same[-1] if same else runs.create(cfg.solver, cfg.label or "default", cfg.run)
    runs.write_metadata(run, signature=sig, data_digest=cfg.data_digest)
    return run


def main(argv: list[str] | None = None) -> None:
    """Train as the overrides in ``argv`` say."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if any(argument in ("-h", "--help") for argument in argv):
        print(__doc__.strip())
        return
    wrong = next((argument for argument in argv if "=" not in argument), None)
    if wrong:
        raise UserError(f"argument {wrong!r}: write it as key=value (see --help)")
    files.outputs_root().mkdir(parents=True, exist_ok=True)
    os.chdir(files.outputs_root())
    argv = finetune.expand([_named(text[4:]) if text.startswith("run=") else text for text in argv])
    cfg = compose(argv)
    argv.append(f"data_digest={data_digest(cfg)}")
    if cfg.device == "auto":
        import torch

        argv.append(f"device={'cuda' if torch.cuda.is_available() else 'cpu'}")
    run = _agree_on_run(compose(argv))
    argv.append(_named(run))
    sys.argv[1:] = argv
    dora_main()()


def _named(run: str) -> str:
    """The override that names a run: text for Hydra, also where it looks like a number."""
    return f"run={run}" if run in ("", "null") else "run='" + run.strip("'\"") + "'"


def _agree_on_run(cfg: DictConfig) -> str:
    """The run's name, decided by the first process and, under torchrun, handed to the others through its store."""
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if world == 1:
        return open_run(cfg).name
    import flashy
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)))
    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    name = [open_run(cfg).name if rank == 0 else None]
    torch.distributed.broadcast_object_list(name)
    flashy.distrib.barrier()
    return name[0]


def _train(cfg: DictConfig) -> None:
    import flashy
    import torch
    from audiocraft.modules.transformer import set_efficient_attention_backend
    from omegaconf import OmegaConf

    from .solvers import SOLVERS

    run = runs.folder() / cfg.run
    flashy.setup_logging(level=str(cfg.logging.level).upper(), folder=run / "logs")
    multiprocessing.set_start_method(cfg.mp_start_method, force=True)
    torch.set_num_threads(cfg.num_threads)
    set_efficient_attention_backend(cfg.efficient_attention_backend)
    torch.manual_seed(cfg.seed)  # the initial weights
    if flashy.distrib.is_rank_zero():
        files.write_text(run / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        runs.write_metadata(run, status="running")
    world = flashy.distrib.world_size()
    if cfg.dataset.batch_size % (world * cfg.optim.accumulate):
        raise UserError(
            f"dataset.batch_size={cfg.dataset.batch_size}: not divisible by processes x optim.accumulate = {world} x {cfg.optim.accumulate}"
        )
    cfg.dataset.batch_size //= world * cfg.optim.accumulate
    picked = pick(cfg)
    if flashy.distrib.is_rank_zero():
        print(f"picked: {picked}", flush=True)
    if cfg.solver not in SOLVERS:
        raise UserError(f"solver={cfg.solver}: unknown{config.suggest(cfg.solver, SOLVERS)}")
    solver = SOLVERS[cfg.solver](cfg)
    with contextlib.suppress(OSError):
        (run / "outputs").rmdir()  # flashy's place for media, which is not used
    if cfg.show:
        solver.show()
        return
    status = "failed"
    try:
        solver.run()
        status = "finished"
    except Interrupted:
        status = "interrupted"
        raise
    finally:
        if flashy.distrib.is_rank_zero():
            runs.write_metadata(run, status=status, steps=solver.step)


def pick(cfg: DictConfig) -> str:
    """Put values that fit the device in the place of every ``auto``, and set the device up; what was picked, in words."""
    import torch

    cuda = cfg.device == "cuda"
    capable = cuda and (cfg.autocast_dtype != "bfloat16" or torch.cuda.is_bf16_supported())
    if cfg.autocast == "auto":
        cfg.autocast = capable and cfg.solver == "musicgen"
    if cfg.tf32 == "auto":
        cfg.tf32 = cuda
    if cfg.optim.fused == "auto":
        cfg.optim.fused = cuda and cfg.optim.optimizer in ("adam", "adamw")
    if cfg.dataset.num_workers == "auto":
        here = parallel.cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        cfg.dataset.num_workers = max(1, min(8, here - 1)) if cuda else here // 4
    if cfg.optim.fused:
        cfg.optim.adam = {**cfg.optim.adam, "fused": True}
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = bool(cfg.tf32)
    if cfg.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(cfg.deterministic, warn_only=True)
    name = torch.cuda.get_device_name() if cuda else f"cpu ({cfg.num_threads} threads)"
    precision = (cfg.autocast_dtype if cfg.autocast else "float32") + (" with TF32" if cfg.tf32 else "")
    return (
        f"{name}, {precision}, {'fused ' if cfg.optim.fused else ''}{cfg.optim.optimizer}, {cfg.dataset.num_workers} reading processes, "
        f"batches of {cfg.dataset.batch_size} x {cfg.optim.accumulate}"
    )


def _explain(overrides: list[str], main: HydraMain, error: Exception) -> str:
    """Hydra's many-line error as one line: the argument that caused it and the names that would do."""
    from omegaconf import OmegaConf

    reason = " ".join(str(error).splitlines()[0].split())
    for text in overrides:
        key, _, value = text.partition("=")
        key = key.lstrip("+~")
        if f"'{key}'" in reason:  # an unknown key
            parent, _, leaf = key.rpartition(".")
            level = OmegaConf.select(main._base_cfg, parent) if parent else main._base_cfg
            return f"{text}: unknown key{config.suggest(leaf, [str(name) for name in level or ()])}"
        group = audiocraft_compat.HYDRA_TREE / key
        if f"{key}/{value}'" in reason and group.is_dir():  # an unknown choice
            return f"{text}: unknown{config.suggest(value, [path.stem for path in group.glob('*.yaml')])}"
    return reason


if __name__ == "__main__":
    run_command(main)

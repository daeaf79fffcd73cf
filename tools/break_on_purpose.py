#!/usr/bin/env python3
"""Break each guarantee on purpose and see that a test notices: `python tools/break_on_purpose.py [--only 2,3] [--match
WORD] [--sample 10] [--jobs 2] [--list] [--out FILE.md]`.

Each mutation below replaces one piece of code in a copy of the repository and runs the test that has to fail then.
Every such test is run first on the copy as it is, and has to pass there. Prints a Markdown table: the guarantee,
what was broken, which test noticed, and with which words. Exits with 1 when a mutation went unnoticed, when a test
fails without one, or when the text to replace is not there exactly once (then the code has moved on: adapt the
mutation). All of them take long: `make mutations` runs them, `.ci/run` a sample, and a test sees that each can be made.
A file may also be a notebook (`nbs/NAME.ipynb`): then the mutation is made in its cells and the notebook is run.
"""
import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GUARANTEES = {
    1: "exact", 2: "atomic", 3: "verified", 4: "delivery to a folder that comes and goes", 5: "stops well",
    6: "elastic", 7: "old checkpoints", 8: "safe", 9: "optimizer matching", 10: "files of strangers"
}


@dataclass
class Mutation:
    guarantee: int      # 1 to 9
    what: str           # what is broken, in words
    file: str           # the file that is changed
    old: str            # text in it, there exactly once
    new: str            # what takes its place
    test: str           # a pytest node id, or a notebook, that has to fail


CK, TRAIN, DELIVERY, SAFE = "cad_mllm/checkpoints", "cad_mllm/training", "cad_mllm/checkpoints", "cad_mllm/checkpoints"
T_SHAPES, T_STRANGERS = "tests/test_strangers_shapes.py::test_", "tests/test_strangers_data.py::test_"
T_CK, T_OURS, T_SAFE, T_DELIVERY = (
    f"tests/test_{name}.py::test_" for name in ("checkpoint", "guarantees", "safety", "delivery")
)
T_LANGUAGE = "tests/test_language.py::test_"
T_KILLS, T_RUNS = "tests/test_train_kills.py::test_", "tests/test_runs.py::test_"
T_TRAIN, T_CHANGES, T_ENDS, T_OLD, T_PEERS = (
    f"tests/test_train{name}.py::test_" for name in ("", "_changes", "_ends", "_old", "_processes")
)
EXACT = T_TRAIN + "killed_and_resumed_is_as_if_never_stopped[lora, dropout 0.1, accumulation 3]"
IN_PARTS = T_TRAIN + "killed_in_an_epoch_at_its_end_and_between_stages"
EVERY_CALL = T_CK + "killed_at_every_single_disk_operation"
DAMAGE = T_CK + "every_damage_is_named_refused_and_passed_over"
DURABLE = T_OURS + "durable_before_it_is_named_and_named_before_others_go"

NOTEBOOK = "notebook"      # as a test: the notebook that makes the changed module

MUTATIONS = [
    # 1 exact
    Mutation(
        1, "the random state is not put back", TRAIN, "if rank < len(states): set_rng_state(states[rank])",
        "if rank < len(states): pass", EXACT
    ),
    Mutation(
        1, "the optimizer's moments are not put back", TRAIN,
        "restore_optimizer(self.optimizer, self.scheduler, saved,",
        "restore_optimizer(self.optimizer, self.scheduler, {},", EXACT
    ),
    Mutation(
        1, "the data position is not put back", TRAIN, 'if hasattr(p, k) and k != "stage_index"',
        'if hasattr(p, k) and k not in ("stage_index", "position")', IN_PARTS
    ),
    Mutation(
        1, "the counts of samples and tokens are not put back", TRAIN, 'if hasattr(p, k) and k != "stage_index"',
        'if hasattr(p, k) and k not in ("stage_index", "samples", "tokens")', IN_PARTS
    ),
    Mutation(
        1, "the best so far is not put back", TRAIN, 'if hasattr(p, k) and k != "stage_index"',
        'if hasattr(p, k) and k not in ("stage_index", "best")', T_OURS + "every_field_of_the_progress_is_put_back"
    ),
    Mutation(
        1, "the learning rate begins its curve again", TRAIN,
        "p.stage_step = schedule.last_epoch = plan.steps_before(p.position)", "p.stage_step = schedule.last_epoch = 0",
        EXACT
    ),
    Mutation(
        1, "the gradient scaler is not put back", TRAIN,
        'if saved.get("scaler"): self.scaler.load_state_dict(saved["scaler"])', "pass",
        T_TRAIN + "killed_and_resumed_is_as_if_never_stopped[fp16, GradScaler]"
    ),
    Mutation(
        1, "the best so far is not put back (by what follows)", TRAIN, 'if hasattr(p, k) and k != "stage_index"',
        'if hasattr(p, k) and k not in ("stage_index", "best")',
        T_TRAIN + "killed_and_resumed_is_as_if_never_stopped[not packed, best by the training loss]"
    ),
    Mutation(
        1, "the learning rate is a step ahead", TRAIN,
        "p.stage_step = schedule.last_epoch = plan.steps_before(p.position)",
        "p.stage_step = schedule.last_epoch = plan.steps_before(p.position) + 1", EXACT
    ),
    Mutation(
        1, "a background save is not a copy", CK,
        "            copy.copy_(t.detach(), non_blocking=t.is_cuda)\n            self.taken.append(copy)\n",
        "            self.made[key] = t\n", T_CK + "what_training_does_while_a_snapshot_is_written_does_not_show"
    ),
    Mutation(
        1, "the random state of a stage's end is dropped", TRAIN,
        "elif optimization.pending: optimization.begin_stage()", "elif optimization.pending: pass",
        T_KILLS + "exact_resume_from_a_stages_end[lora, dropout]"
    ),
    Mutation(
        2, "a new run begins in the folder of an earlier one", "cad_mllm/training/run_folder.py",
        "    if not records or checkpoint and", "    if records or checkpoint and",
        T_RUNS + "a_new_run_in_the_folder_of_an_earlier_one_is_refused_and_touches_nothing"
    ),
    Mutation(
        2, "pruning looks at all runs of a folder", CK, "stages.setdefault((record.path.parent, record.run), [])",
        "stages.setdefault(record.path.parent, [])", T_RUNS + "best_latest_and_pruning_look_at_their_own_run_only"
    ),
    Mutation(
        2, "a lock elsewhere is taken though its heartbeat changes", "cad_mllm/utils",
        "        if now != data: raise HeldError(read_holder(now))\n", "",
        T_RUNS + "two_trainings_in_one_folder_are_refused_and_the_holder_is_named"
    ),
    Mutation(
        2, "a reused process id counts as the holder", "cad_mllm/utils",
        "not abs(process.create_time() - holder.born) <= 2 or ", "",
        T_RUNS + "a_lock_is_taken_over_when_its_holder_is_gone_or_its_heartbeat_does_not_change"
    ),
    Mutation(
        2, "steps without finite numbers go on for ever", TRAIN,
        "if self.nonfinite_steps >= state.train_config.max_nonfinite_steps:", "if False:",
        T_RUNS + "weights_become_nan_it_is_said_and_the_run_stops"
    ),
    Mutation(
        2, "a run without finite numbers goes back again and again", TRAIN,
        "if was.went_back or state.is_sharded: raise error", "if state.is_sharded: raise error",
        T_RUNS + "weights_become_nan_it_is_said_and_the_run_stops"
    ),
    Mutation(
        5, "a folder named stop ends each run at once", TRAIN, "    )\n    self.files = None\n", "    )\n",
        T_RUNS + "a_folder_named_stop_is_told_and_stops_nothing"
    ),
    Mutation(
        2, "the halved learning rate is forgotten", TRAIN,
        "was.lr_scale*(.5 if halve else 1.0)",
        "1.0",
        T_RUNS + "a_run_without_finite_numbers_goes_back_once_and_is_then_as_if_nothing_had_been"
    ),
    Mutation(
        3, "weights that are not finite are not marked", CK,
        'extra = options["extra_metadata"] | ({"not_finite": bad} if bad else {})', 'extra = options["extra_metadata"]',
        T_RUNS + "a_checkpoint_with_a_weight_that_is_not_finite_is_marked_and_takes_no_good_ones_place"
    ),
    Mutation(
        3, "a part is completed with weights that are not finite", "cad_mllm/completion.py", "if not given and (bad :=",
        "if given and (bad :=", T_RUNS + "complete_refuses_weights_that_are_not_finite"
    ),
    Mutation(
        1, "other base weights under the same name pass", TRAIN, 'was[part].get("fingerprint") != base["fingerprint"]',
        "False", T_CHANGES + "base_weights_replaced_under_the_same_name"
    ),
    Mutation(
        1, "another model passes from Python", TRAIN, "raise ConfigError(wrong)", "pass",
        T_CHANGES + "train_from_python_compares_as_the_command_line_does"
    ),
    Mutation(
        1, "the learning rate does not follow max_steps", TRAIN, 'if t.schedule_to != "max_steps": return',
        "if True: return", T_CHANGES + "the_learning_rate_follows_max_steps_only_when_asked"
    ),
    Mutation(
        1, "max_steps does not enter the time that is left", TRAIN,
        "return min(total, t.max_steps or total)", "return total",
        T_CHANGES + "the_learning_rate_follows_max_steps_only_when_asked"
    ),
    Mutation(
        1, "a name of checkpoints is not checked before the run", TRAIN,
        "for stage in train_config.stages:\n        checkpoint_name(", "for stage in ():\n        checkpoint_name(",
        T_CHANGES + "what_cannot_be_trained_is_refused_before_the_run_starts"
    ),
    Mutation(
        3, "what save_pretrained wrote is refused", CK, "if is_old_format(path) or is_saved_model(path): return",
        "if is_old_format(path): return", "tests/test_inference.py::test_save_pretrained_then_complete"
    ),
    # 2 atomic
    Mutation(
        2, "files are written straight under the final name", CK, 'temporary = temporary_path(final, "tmp")',
        "temporary = final if not final.exists() else temporary_path(final, 'tmp')", EVERY_CALL
    ),
    Mutation(
        2, "left-over temporaries are not cleaned", CK, "    clean_temporaries(final.parent)\n    temporary",
        "    temporary", EVERY_CALL
    ),
    Mutation(
        2, "a replaced folder is removed before the new one has its name", CK,
        "    try: DISK.rename(temporary, target)\n",
        "    if aside: DISK.remove(aside); aside = None\n    try: DISK.rename(temporary, target)\n",
        T_OURS + "a_replaced_model_is_there_before_or_after"
    ),
    Mutation(
        2, "files are not synced", CK, "    thread_map(lambda n: DISK.sync(folder/n), names, len(names) > 2)", "    #",
        DURABLE
    ),
    Mutation(2, "the folder that holds the new name is not synced", CK, "    DISK.sync(target.parent)\n", "", DURABLE),
    Mutation(
        2, "a write that kept less than it was given passes", CK, 'if size != known[name]["size"]:', "if False:",
        T_CK + "a_disk_that_keeps_less_than_it_was_given"
    ),
    Mutation(
        2, "the best may be pruned", CK, "if r is not best and ", "if ",
        T_RUNS + "best_latest_and_pruning_look_at_their_own_run_only"
    ),
    Mutation(
        2, "the one resumed from may be pruned", CK, "r.path.resolve() not in keep", "True",
        T_CK + "the_one_resumed_from_stays"
    ),
    Mutation(
        2, "old ones go before the new one is written", CK, "        path = _publish_snapshot(final, s, metadata)\n",
        '        prune_checkpoints(stage_dir, max(1, options["keep_last_n"] - 1), options["protect"])\n        path = '
        '_publish_snapshot(final, s, metadata)\n',
        DURABLE
    ),
    # 3 verified
    Mutation(
        3, "hashes are not compared", CK, "None if read_hash(Path(folder)/name, is_tree(want)) == hash_of(want)",
        "None if True", DAMAGE
    ),
    Mutation(
        3, "sizes are not compared", CK, 'elif there[name].st_size != want.get("size"):', "elif False:",
        T_OURS + "a_file_cut_short_shows_in_a_list"
    ),
    Mutation(
        3, "missing files pass", CK, 'if name not in there: problems.append(f"{name}: is missing")',
        "if name not in there: pass", DAMAGE
    ),
    Mutation(
        3, "extra files pass", CK, "for name in sorted(set(there) - set(listed) - {MANIFEST})\n", "for name in ()\n",
        DAMAGE
    ),
    Mutation(
        3, "an empty manifest passes", CK, "if not isinstance(files, dict) or not files: raise",
        "if not isinstance(files, dict): raise", T_OURS + "an_empty_manifest_proves_nothing"
    ),
    Mutation(
        3, "the manifest's own hash is not compared", CK,
        'if manifest.get("sha256") != _self_hash(manifest):', "if False:",
        T_OURS + "one_digit_of_a_manifest"
    ),
    Mutation(
        3, "loading does not refuse", CK,
        "if problems := verify_checkpoint(path, hashes): _refuse(path, problems, trust)", "if False: pass", DAMAGE
    ),
    Mutation(
        3, "latest takes the newest without reading it", CK,
        "            else verify_checkpoint(record.path)\n", "            else []\n", DAMAGE
    ),
    Mutation(
        3, "auto does not say what it passes over", CK, "    if passed and not quiet: print(", "    if False: print(",
        T_CK + "latest_says_what_it_passed_over"
    ),
    Mutation(
        3, "auto does not say what it passes over (training)", TRAIN,
        'path = (self.output.delivery.find(wanted) or "")',
        'path = (self.output.delivery.find(wanted, quiet=True) or "")', T_TRAIN + "auto_names_what_it_passes_over"
    ),
    Mutation(
        3, "the command does not tell what is wrong", "cad_mllm/commands/files.py",
        """+ "".join(f"\\n    {p}" for p in problems))""", ")",
        T_CK + "the_command_names_what_is_wrong_and_rewrites_what_is_old"
    ),
    Mutation(
        3, "the command ends with 0 whatever it finds", "cad_mllm/commands/files.py", "        bad += bool(problems)\n",
        "", T_CK + "the_command_names_what_is_wrong_and_rewrites_what_is_old"
    ),
    Mutation(
        7, "the command does not upgrade", "cad_mllm/commands/files.py", "if r.old_format] if upgrade else ():",
        "if r.old_format] if False else ():", T_CK + "the_command_names_what_is_wrong_and_rewrites_what_is_old"
    ),
    Mutation(
        3, "a proof holds also when files were touched since", CK, "and signature == _signature(path)", "",
        T_CK + "a_proof_is_used_once_and_only_for_what_is_untouched"
    ),
    # 4 delivery
    Mutation(
        4, "what was copied is not read back", DELIVERY,
        "if not t.linked and out.sha256(target, **_kind_of(want)) != hash_of(want):", "if False:",
        T_DELIVERY + "a_half_copied_and_a_wrongly_read_file_never_get_a_final_name"
    ),
    Mutation(
        4, "a failure there ends the delivery", DELIVERY, "        with queue.cond: self.outage.failed(e, room)\n",
        "        raise\n", T_DELIVERY + "training_goes_on_while_the_folder_fails_and_all_is_delivered_when_it_returns"
    ),
    Mutation(
        4, "old ones go before a newer one is proved there", DELIVERY,
        "if not any(self.places.key(r.path) in self.queue.proved for r in newer):", "if False:",
        T_DELIVERY + "nothing_is_pruned_before_a_newer_one_is_proved_there"
    ),
    Mutation(
        4, "the backlog has no bound", DELIVERY,
        "while len(self.queue.pending) > self.max_pending and self.drop_one(): pass", "pass",
        T_DELIVERY + "the_backlog_is_bounded_by_count_and_keeps_what_matters"
    ),
    Mutation(
        4, "a rename that happened is not looked for", DELIVERY, "if not _arrived(t, out): raise OSError(errno.EAGAIN,",
        "if False: raise OSError(errno.EAGAIN,", T_DELIVERY + "a_rename_that_is_lost_is_made_again"
    ),
    Mutation(
        4, "what shows late is copied again", DELIVERY, "    if since is not None and clock() - since < settle: raise",
        "    if False: raise", T_DELIVERY + "what_shows_late_is_not_copied_twice"
    ),
    Mutation(
        4, "a killed run's backlog is forgotten", DELIVERY,
        "(self.kept if has_arrived(key) else self.pending)[key] = record", "self.kept[key] = record",
        T_DELIVERY + "a_killed_run_leaves_its_backlog_to_the_next_one"
    ),
    Mutation(
        4, "copies grow under the final name", DELIVERY, 'temporary_path(self.final, "tmp")', "self.final",
        T_DELIVERY + "a_half_copied_and_a_wrongly_read_file_never_get_a_final_name"
    ),
    Mutation(
        4, "files that have a second name are emptied for the trash", DELIVERY, "    if not self.links_work():",
        "    if True:", T_DELIVERY + "files_are_emptied_before_the_trash_only_where_no_links_are"
    ),
    Mutation(
        4, "nothing is emptied for the trash", DELIVERY, "    if not self.links_work():", "    if False:",
        T_DELIVERY + "files_are_emptied_before_the_trash_only_where_no_links_are"
    ),
    Mutation(
        4, "a full folder makes no room for the newest", DELIVERY,
        "        room = is_full(e) and self.remote.make_room()", "        room = False",
        T_DELIVERY + "a_full_folder_gives_up_its_oldest_for_the_newest"
    ),
    Mutation(
        4, "the end of a run does not wait for the delivery", TRAIN,
        "while not delivery.flush(1.0) and time.monotonic() < until and not stopper.check():",
        "while False:", T_ENDS + "the_end_of_a_run_waits_for_an_output_folder_that_comes_back"
    ),
    Mutation(
        4, "what lies locally only is not found", TRAIN, 'path = (self.output.delivery.find(wanted) or "")',
        'path = (__import__("cad_mllm.checkpoints", fromlist=["x"]).find_checkpoint(wanted, '
        'self.state.output_dir) or "")',
        T_ENDS + "local_first_killed_and_delivered_by_the_next_run"
    ),
    Mutation(
        4, "undelivered checkpoints do not show in the exit code", TRAIN,
        "if self.undelivered or self.lines_left: return EXIT_UNDELIVERED", "pass",
        T_ENDS + "trained_to_the_end_without_the_output_folder_has_a_code_of_its_own"
    ),
    Mutation(
        4, "lines that the folder does not take are not kept on a disk", DELIVERY,
        "        append_bytes(self.spare/name, line)\n", "", T_ENDS + "full_or_read_only_output_folder_keeps_every_line"
    ),
    Mutation(
        4, "kept lines are put behind all others", DELIVERY,
        "heapq.merge(before, _timed(added, behind), key=itemgetter(0))", "before + _timed(added, behind)", "notebook"
    ),
    # 5 stops well
    Mutation(
        5, "SIGTERM is not caught", TRAIN, "for s in (signal.SIGTERM, signal.SIGINT):\n            try",
        "for s in (signal.SIGINT,):\n            try", T_TRAIN + "it_stops_when_asked_and_goes_on"
    ),
    Mutation(
        5, "the stop file is not looked for", TRAIN, "if self.files and self.files.seen(STOP):", "if False:",
        T_TRAIN + "it_stops_when_asked_and_goes_on"
    ),
    Mutation(
        5, "a stopped run ends with the code of a finished one", TRAIN,
        'if self.status != "done": return EXIT_STOPPED', "pass", T_TRAIN + "it_stops_when_asked_and_goes_on"
    ),
    Mutation(
        5, "the time budget is not looked at", TRAIN, "if time.monotonic() >= self.deadline:", "if False:",
        T_TRAIN + "by_the_clock"
    ),
    Mutation(
        5, "a disk too small is not looked for", TRAIN,
        "said, self.space = self.space, check_space(self.delivery.root, self.needed)",
        'said, self.space = self.space, ""', T_ENDS + "a_disk_too_small_is_noticed_before_it_is_needed"
    ),
    Mutation(
        5, "nothing is saved when asked to stop", TRAIN,
        "    if p.val_due or not p.is_over(plan): save_and_leave(self.saver)", "    pass",
        T_TRAIN + "it_stops_when_asked_and_goes_on"
    ),
    Mutation(
        5, "no save by the clock", TRAIN, "by_clock = t.save_minutes and world.is_main and",
        "by_clock = False and", T_TRAIN + "by_the_clock"
    ),
    # 6 elastic
    Mutation(
        6, "another number of processes keeps the batch of a process, not that of a step", TRAIN,
        "share, rest = divmod(was.per_step, world)", "share, rest = divmod(was.per_step*world, world)",
        T_CHANGES + "other_processes_keep_the_step"
    ),
    Mutation(
        6, "other data are not noticed", TRAIN,
        'if saved.get("fingerprint", now["fingerprint"]) == now["fingerprint"]: return []', "return []",
        T_CHANGES + "refused_before_anything_happens"
    ),
    Mutation(
        6, "changes are told but not refused", TRAIN, "    if refused:\n", "    if False:\n",
        T_CHANGES + "refused_before_anything_happens"
    ),
    Mutation(
        6, "a sequence length of its own is not compared", TRAIN,
        '    "max_seq_length": ("max_seq_length", OTHER_RUN, "other samples fit: longer ones join or are left out"),\n',
        "", T_CHANGES + "every_setting_is_either_compared_or_without_meaning"
    ),
    Mutation(
        6, "each process gets the random state of the first", TRAIN, "set_rng_state(states[rank])",
        "set_rng_state(states[0])", T_PEERS + "stopped_by_one_killed_all_and_still_as_if_never_stopped"
    ),
    Mutation(
        6, "one that fails leaves no word", TRAIN, '    try: self.store.set(f"end/{self.rank}"',
        '    try: f(f"end/{self.rank}"', T_PEERS + "one_fails_and_the_other_repeats_its_error"
    ),
    Mutation(
        6, "gradients are not added up", TRAIN, "g.copy_(part.view_as(g))", "pass",
        T_PEERS + "other_processes_same_data"
    ),
    Mutation(
        6, "a dead process is not named", TRAIN,
        "    except RuntimeError as e: raise PeerError(self.describe_failure(e)) from e",
        "    except RuntimeError as e: raise e", T_PEERS + "one_dies_and_the_other_does_not_wait"
    ),
    Mutation(
        6, "processes told different things begin all the same", TRAIN, "    if len(set(same)) > 1:", "    if False:",
        T_PEERS + "told_different_things_they_do_not_begin"
    ),
    Mutation(
        6, "an acceptance is kept for the next time", TRAIN,
        'train_config=replace(state.train_config, accept_changes=""),', "train_config=state.train_config,",
        T_CHANGES + "accepted_it_goes_on_and_says_so"
    ),
    Mutation(
        6, "other data go on at the old number of samples", TRAIN,
        'if "data" in names: p.position = rescale_position(p.position, saved["num_samples"], len(state.data))',
        "pass", T_CHANGES + "changed_data_go_on_from_the_same_share_of_the_epoch"
    ),
    Mutation(
        6, "a signal counts for one process before the others know", TRAIN, '        self.caught = "Ctrl-C" if',
        '        self.reason = self.caught = "Ctrl-C" if', T_PEERS + "a_signal_while_they_agree_counts_at_the_next_step"
    ),
    Mutation(
        6, "the group lives on after it was left", TRAIN,
        "    from torch.distributed.nn import functional  # noqa: F401   (must not meet a group that it could keep)\n",
        "", T_PEERS + "a_process_that_is_done_ends_with_its_code"
    ),
    Mutation(
        6, "the first one through does not wait for the others", TRAIN,
        '        self.store.wait([f"left/{rank}" for rank in range(self.size)], timedelta(minutes=self.minutes))\n', "",
        T_PEERS + "a_process_that_is_done_ends_with_its_code"
    ),
    Mutation(
        6, "one of several takes its interpreter down", "cad_mllm/cli.py",
        'if not own and int(os.environ.get("WORLD_SIZE", 1)) < 2: sys.exit(code)', "sys.exit(code)",
        T_PEERS + "a_process_that_is_done_ends_with_its_code"
    ),
    # 7 old checkpoints
    Mutation(
        7, "fields of an old configuration are not mapped", CK, "            taken[key] = value\n", "",
        T_CK + "old_config_variants"
    ),
    Mutation(
        7, "an old checkpoint is taken for one of ours", CK,
        'try: return "format" not in read_json_file(folder/METADATA)', 'try: return False',
        T_OLD + "an_old_checkpoint_goes_on"
    ),
    Mutation(
        7, "the best of an old run may be overwritten", CK, "keep = is_old_format(target)", "keep = False",
        T_CK + "the_best_of_years_ago_is_kept"
    ),
    Mutation(
        7, "an old checkpoint's step is forgotten", TRAIN,
        'p.step = int(saved.get("step") or loaded.metadata.get("step") or 0)', "p.step = 0",
        T_OLD + "an_old_checkpoint_goes_on"
    ),
    # 8 safe
    Mutation(
        8, "kernels from a hub pass", SAFE, "if kernel := kernel_demands(value): raise", "if False: raise",
        T_SAFE + "only_kernels_and_quantizations_that_the_kit_knows"
    ),
    Mutation(
        8, "values of any kind pass in a configuration", "cad_mllm/utils/settings.py",
        "def __post_init__(self):\n        check_kinds(self)\n        self.validate()",
        "def __post_init__(self):\n        self.validate()",
        T_SAFE + "damaged_but_sealed_files_are_a_checkpoint_error_with_their_name"
    ),
    Mutation(
        3, "the newest good one may be one that is refused", CK, "and not _would_load(found, trust): skip",
        "and False: skip", T_SAFE + "the_newest_good_one_is_never_one_that_would_be_refused"
    ),
    Mutation(
        8, "numbers of a pack's index may lead nowhere", "cad_mllm/data",
        "            check_references(self, _MEMBER)\n", "",
        "tests/test_pack.py::test_references_of_a_pack_index_are_checked_when_it_is_opened"
    ),
    Mutation(
        8, "numbers of a data index may lead nowhere", "cad_mllm/data", "    _check_table(table)\n    return table",
        "    return table", "tests/test_pack.py::test_a_data_index_whose_references_lead_nowhere_is_made_again"
    ),
    Mutation(
        8, "a pickle may name any class (our own look)", SAFE, "        raise _Name(full)\n", "        return _Inert\n",
        T_SAFE + "no_pickle_runs"
    ),
    Mutation(
        8, "neither of the two looks at pickles is there", SAFE,
        "        check_pt(path, [name for _, name in names])\n        with "
        "torch.serialization.safe_globals(list(names)):\n            return torch.load(path, map_location=\"cpu\", "
        "weights_only=True, mmap=mmap)",
        "        return torch.load(path, map_location=\"cpu\", weights_only=False, mmap=mmap)", T_SAFE
        + "no_pickle_runs"
    ),
    Mutation(
        8, "names and links may lead out of the folder", SAFE,
        "    if (\n        not isinstance(name, str) or not name or \"\\0\" in name or \"\\\\\" in name or "
        "os.path.isabs(name)\n        or \"..\" in name.split(\"/\")\n    ):\n        raise "
        "UnsafeFile(f\"{str(name)[:80]!r}: is not the name of a file in the checkpoint's folder\")\n    path = "
        "folder/name\n    if not os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep):\n        raise "
        "UnsafeFile(f\"{name}: is a link that leads out of the checkpoint's folder; put the file itself there\")\n",
        "    path = folder/name\n", T_SAFE + "a_weight_map_stays_inside"
    ),
    Mutation(
        8, "links may lead out of the folder", SAFE,
        "if not os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep):", "if False:",
        T_SAFE + "no_link_leads_out"
    ),
    Mutation(
        8, "a tensor may claim more than its bytes", SAFE, "if num > storage.num:", "if False:",
        T_SAFE + "a_tensor_is_as_large_as_its_bytes"
    ),
    Mutation(
        8, "a safetensors header may lie", SAFE, "if offsets[0] != begin or offsets[1] - begin != need:",
        "if False:", T_SAFE + "safetensors_headers_that_lie"
    ),
    Mutation(
        8, "compressed archives are read", SAFE,
        "if entry.compress_type or entry.flag_bits & 1 or entry.compress_size != entry.file_size:",
        "if False:", T_SAFE + "zip_bombs"
    ),
    Mutation(
        8, "a JSON file may be of any size", SAFE, "return read_object(path, limit)", "return read_object(path, 2**40)",
        T_SAFE + "json_that_bites"
    ),
    Mutation(
        8, "a checkpoint may name another base without the user's word", SAFE, "        if name not in trust:",
        "        if False:", T_SAFE + "what_needs_a_word"
    ),
    # 9 optimizer matching
    Mutation(
        9, "matched by position, not by name", CK, "key = (g, i) if positional else names[g][i]",
        "key = list(have)[0] if have else None", "notebook"
    ),
    Mutation(
        9, "shapes are not compared", CK,
        "elif shape is not None and shape != list(p.shape) or _odd_moment(values, p):", "elif False:", "notebook"
    ),
    Mutation(
        9, "what does not match is not listed", CK,
        'return state, notes + _listed("fresh optimizer state for", misfits) + _listed(',
        "return state, notes + [] and _listed(", "notebook"
    ),
    # 10 files of strangers
    Mutation(
        10, "concave polygons are cut as fans", "cad_mllm/geometry",
        "(flat := _flat(corners)) is None or _turns_one_way(flat): return fan",
        "(flat := _flat(corners)) is None or True: return fan", T_SHAPES + "concave_polygons_are_cut_as_they_are"
    ),
    Mutation(
        10, "colours are taken for normals", "cad_mllm/geometry",
        "if k >= 3 and k + 3 <= width and are_normals(table[:, k:k + 3])", "if k >= 3 and k + 3 <= width",
        T_SHAPES + "normals_are_known_by_their_length"
    ),
    Mutation(
        10, "an archive's claim is believed", "cad_mllm/geometry",
        "if not 0 <= size <= min(room, MOST_CLOUD_BYTES):", "if False:",
        T_SHAPES + "archive_that_unpacks_to_gigabytes_is_refused"
    ),
    Mutation(
        10, "pictures of 16 bits are cut off", "cad_mllm/data", "image = _in_bytes(ImageOps.exif_transpose(image))",
        "image = ImageOps.exif_transpose(image)", T_SHAPES + "pictures_of_sixteen_bits_floats_turned_and_huge"
    ),
    Mutation(
        10, "half characters stay in captions", "cad_mllm/data",
        'return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")', "return text",
        T_STRANGERS + "half_characters_in_captions_are_cleaned_and_counted"
    ),
    Mutation(
        10, "a broken text is read over and over", "cad_mllm/cad/recovery.py", "raise _TooBroken", "pass",
        T_LANGUAGE + "broken_text_is_read_in_linear_time[open sketches with a stray brace]"
    ),
    Mutation(
        10, "brackets within brackets have no bound", "cad_mllm/cad/recovery.py", "if depth > _MAX_DEPTH:",
        "if depth > 10**9:", T_LANGUAGE + "large_texts_of_a_stranger_end_with_a_documented_error"
    ),
    Mutation(
        10, "operations are searched for in a list", "cad_mllm/cad/program.py", "if id in ids: raise",
        "if id in list(ids): raise", T_LANGUAGE + "operations_are_found_without_searching_lists"
    ),
    Mutation(
        10, "a history's small dimensions are rounded", "cad_mllm/cad/rounding.py",
        "return abs(after - before) > TOLERANCE*before", "return abs(after - before) > 1e9*before",
        "tests/test_tokens.py::test_no_dimension_changes_by_more_than_two_percent"
    ),
    Mutation(
        10, "a rounded loop may cross itself", "cad_mllm/cad/rounding.py", "        self.exact.add(loop)\n",
        "        return\n", T_LANGUAGE + "rounding_never_makes_a_valid_loop_cross_itself"
    ),
    Mutation(
        7, "an old configuration speaks the new language", "cad_mllm/config.py",
        '"token_version": 1, "measure_version"', '"measure_version"',
        T_LANGUAGE + "a_configuration_without_a_version_speaks_the_first_to_the_byte"
    ),
    Mutation(
        7, "settings under earlier names are not compared", "cad_mllm/training/resume.py",
        'TrainConfig.with_current_names(saved.get("train_config") or {})', 'saved.get("train_config") or {}',
        "tests/test_renamed_keys.py::test_changes_are_found_and_accepted_under_both_names"
    ),
    Mutation(
        10, "separate bodies are not said", "cad_mllm/completion_candidates.py",
        '"a valid solid, one body" if num_bodies == 1 else', '"a valid solid, one body" if num_bodies else',
        "tests/test_inference.py::test_separate_bodies_are_said"
    ),
]


def find(mutation, text):
    "The text of the file, changed; an error as a string where the old text is not there exactly once."
    if (times := text.count(mutation.old)) != 1:
        return None, f"its text is there {times} times, not once: adapt the mutation"
    return text.replace(mutation.old, mutation.new), None


def changed(root, mutation):
    "(file, its changed text, problem): the problem is a sentence where the change cannot be made, else None."
    path = module_of(root, mutation)
    if path is None: return root/mutation.file, None, f"no file of {mutation.file} has its text: adapt the mutation"
    if mutation.test == NOTEBOOK: return changed_notebook(root, mutation, path)
    return path, *find(mutation, path.read_text(encoding="utf-8"))


def module_of(root, mutation):
    "The file of a mutation: as it is named, or the one of the chapter that has its text; None where there is none."
    path = root/mutation.file
    if path.is_file(): return path
    return next((p for p in sorted(path.glob("*.py")) if mutation.old in p.read_text(encoding="utf-8")), None)


def notebook_of(root, path):
    "The notebook that makes a module, whose cells are what its tests run."
    module = ".".join(path.relative_to(root).with_suffix("").parts[1:])
    line = f"#| default_exp {module}\n"
    return next(
        (p for p in sorted((root/"nbs").rglob("*.ipynb")) if any(line in cell + "\n" for cell in cells(p))), None
    )


def changed_notebook(root, mutation, module):
    "The same for a change in the cells of a notebook."
    path = notebook_of(root, module)
    if path is None: return None, None, f"no notebook makes {mutation.file}: adapt the mutation"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    found = [c for c in notebook["cells"] if mutation.old in "".join(c["source"])]
    if len(found) != 1:
        return path, None, f"its text is in {len(found)} cells of {path.name}, not in one: adapt the mutation"
    text, problem = find(mutation, "".join(found[0]["source"]))
    if not problem: found[0]["source"] = text.splitlines(keepends=True)
    return path, json.dumps(notebook), problem


def change(root, mutation):
    "Make the change in a copy of the repository; a sentence where it cannot be made."
    path, text, problem = changed(root, mutation)
    if not problem: path.write_text(text, encoding="utf-8")
    return problem


def cannot_be_made(root=ROOT):
    "(mutation, why not) of each whose text the code no longer has."
    return [(m, problem) for m in MUTATIONS if (problem := changed(root, m)[2])]


def cells(path): return ["".join(c["source"]) for c in json.loads(path.read_text(encoding="utf-8"))["cells"]]


def copy_of_repository(target):
    "What git knows of, and what it does not ignore."
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True,
        check=True
    ).stdout.decode().split("\0")
    for name in filter(None, names):
        if (ROOT/name).is_file():
            (target/name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT/name, target/name)
    return target


def run(root, *tests, timeout=900):
    "(whether all passed, output)"
    env = {**os.environ, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    notebooks = [t for t in tests if t.endswith(".ipynb")]
    others = [t for t in tests if not t.endswith(".ipynb")]
    said, good = "", True
    commands = [
        [
            sys.executable, "-c",
            "import sys; from pathlib import Path; from nbdev.test import test_nb; sys.exit(not "
            f"test_nb(Path({str(root/n)!r}), skip_flags=['slow'])[0])"
        ]
        for n in notebooks
    ]
    if others:
        commands.append([sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--tb=short", *others])
    for command in commands:
        try:
            done = subprocess.run(
                command, cwd=root, env=env, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired: return False, said + f"not through after {timeout} s"
        good, said = good and done.returncode == 0, said + done.stdout + done.stderr
    return good, said


def words(said):
    "The line that tells what the test found: pytest's first, a notebook's last."
    lines = [s.strip() for s in said.splitlines()]
    marked = [s.removeprefix("E").strip() for s in lines if re.match(r"E\s+\S", s)]
    errors = [s for s in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", s)]
    plain = errors or [s for s in lines if s]
    found = re.sub(r"\s+", " ", marked[0] if marked else plain[-1] if plain else "")
    return re.sub(
        r"/[\w.~-]*(/[\w.~-]+)+", lambda m: m[0].rsplit("/", 1)[-1], found
    )[:110].replace("|", "/").replace("`", "'")


def test_of(root, mutation):
    "The test of a mutation; for a notebook, the path of the one that makes the changed module."
    if mutation.test != NOTEBOOK: return mutation.test
    found = [
        p for p in sorted((root/"nbs").rglob("*.ipynb"))
        if any(
            mutation.new in cell or mutation.old in cell for cell in cells(p) if cell.lstrip().startswith("#| export")
        )
    ]
    return found[0].relative_to(root).as_posix()


def try_one(mutation):
    "(mutation, problem or None, words of the test)"
    with tempfile.TemporaryDirectory() as folder:
        root = copy_of_repository(Path(folder)/"repo")
        if problem := change(root, mutation): return mutation, problem, ""
        good, said = run(root, test_of(root, mutation))
        if re.search(r"no tests ran|not found:|errors? during collection|ERROR collecting|^\d+ skipped in", said, re.M):
            return mutation, f"the test could not be run: {words(said)}", ""
        return (mutation, "NOT NOTICED", "") if good else (mutation, None, words(said))


def baseline(tests):
    "Tests that fail although nothing is broken."
    with tempfile.TemporaryDirectory() as folder:
        root = copy_of_repository(Path(folder)/"repo")
        good, said = run(root, *tests, timeout=3000)
        return "" if good else said


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="numbers of guarantees, with commas")
    parser.add_argument("--match", default="", help="only mutations with this in their description or test")
    parser.add_argument(
        "--sample", type=int, default=0, help="only so many, drawn by --seed from those that are chosen otherwise"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="mutations at a time")
    parser.add_argument("--list", action="store_true", help="see whether each mutation can be made, and run nothing")
    parser.add_argument("--skip-baseline", action="store_true", help="do not run the tests without a mutation first")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    chosen = [
        m for m in MUTATIONS if (not args.only or str(m.guarantee) in args.only.split(","))
        and args.match in m.what + m.test
    ]
    if args.sample: chosen = random.Random(args.seed).sample(chosen, min(args.sample, len(chosen)))
    if args.list:
        bad = 0
        for m in chosen:
            problem = changed(ROOT, m)[2]
            bad += bool(problem)
            print(f"{m.guarantee} {m.what}: {problem or 'can be made'}")
        sys.exit(bool(bad))
    if not args.skip_baseline and (said := baseline(sorted({test_of(ROOT, m) for m in chosen}))):
        sys.exit(f"these tests fail without a mutation too:\n{said[-3000:]}")
    rows, bad = ["| guarantee | broken on purpose | test that noticed | what it said |", "|---|---|---|---|"], 0
    with ThreadPoolExecutor(args.jobs) as pool:
        for m, problem, noticed in pool.map(try_one, chosen):
            bad += bool(problem)
            print(
                f"{'!!' if problem else 'ok'} {m.guarantee} {m.what}: {problem or noticed}", file=sys.stderr, flush=True
            )
            rows.append(
                f"| {m.guarantee} {GUARANTEES[m.guarantee]} | {m.what} | "
                f"{problem or '`' + m.test.removeprefix('tests/') + '`'} | {f'`{noticed}`' if noticed else ''} |"
            )
    text = "\n".join(rows) + f"\n\n{len(chosen) - bad} of {len(chosen)} noticed.\n"
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text, encoding="utf-8")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()

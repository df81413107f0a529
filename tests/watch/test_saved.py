"""Which checkpoint the next start goes on from."""

from megatron_yuyuan.watch.saved import MANIFEST, TRACKER, find_checkpoint


def test_the_newest_whole_checkpoint_is_named(tmp_path):
    assert find_checkpoint(tmp_path) is None
    for name in ("iter_0000005", "iter_0000010", "iter_0000015.tmp", "iter_0000010.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST).touch()
    (tmp_path / "iter_0000020").mkdir()
    assert find_checkpoint(tmp_path) == tmp_path / "iter_0000010"
    tracker = tmp_path / TRACKER
    for text, number in (("5", 5), ("15", 10), ("20", 10), ("none", 10)):
        tracker.write_text(text)  # as after --ckpt-step 5; what is not whole is not gone on from
        assert find_checkpoint(tmp_path) == tmp_path / f"iter_{number:07d}"

"""What would keep a job from running, found before it starts: `python -m megatron_yuyuan.doctor`."""

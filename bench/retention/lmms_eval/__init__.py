"""The scenes' questions as a task of lmms-eval, ``ocvtp_scenes``."""

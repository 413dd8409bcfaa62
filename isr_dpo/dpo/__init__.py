"""DPO: loss and trainer."""

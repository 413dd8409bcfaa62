"""What all components share. KFP ships a component's source text, so nothing here is visible inside one."""

import functools

from kfp import dsl

IMAGE = "isr-dpo-python"
"""Stands for the images of ours, which a placement names by digest. Under kfp.local no image is used."""

step = functools.partial(dsl.component, base_image=IMAGE, install_kfp_package=False)
"""The decorator of a step. Our images hold kfp and isr-dpo: nothing is installed when a pod starts."""

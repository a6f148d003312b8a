"""Stable Diffusion 1.5 and 2.1 (Rombach et al., CVPR 2022), as far as features need it.

  vae         images to latents: the encoder of the autoencoder
  unet        latents, a timestep and a prompt to feature maps of the decoder, or to the predicted noise
  schedule    noise of the timesteps; DDIM inversion (Song et al., ICLR 2021)
  attention   one operation, in the implementation that suits the device

Modules are named as in diffusers, with `_` before and after a list's index instead of dots, so that every array has one
place in a published folder (`uld_jax/convert/stable_diffusion.py`).
"""

// The form before the server's model is known: SDXL as everybody has it. What is not chosen is not
// sent, so nothing of this reaches a request.

import type { Model } from '../server/types';

export const FIRST_MODEL: Model = {
  name: null,
  family: 'sdxl',
  device: null,
  gpu: null,
  worker: 'ready',
  known: false,
  schedulers: [],
  waiting_for: null,
  steps: { minimum: 1, maximum: 100, default: 28 },
  cfg: { minimum: 1, maximum: 20, default: 5.5 },
  lora_scale: { minimum: -2, maximum: 2, default: 1 },
  limits: {
    native_size: 1024,
    min_side: 512,
    max_side: 1536,
    multiple_of: 8,
    prompt_max_chars: 4000,
    max_loras: 8,
    max_images: 8,
    hires_max_side: 1536,
    clip_skip_max: 12,
    lora_max_bytes: 0,
    image_max_bytes: 0,
    image_max_pixels: 0,
    image_max_side: 0,
    upscalers: [],
    controls: [],
    adapters: [],
  },
};

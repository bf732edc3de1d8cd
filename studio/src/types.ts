// The shapes of the backend's API, as far as the page uses them. Times are ISO 8601, sides px.

export type Status = 'queued' | 'running' | 'succeeded' | 'failed' | 'cancelled';

export interface Picture {
  url: string;
  thumbnail_url?: string | null;
  seed: number;
  width: number;
  height: number;
  sha256: string;
}

export interface Parameters {
  width: number;
  height: number;
  steps: number;
  cfg: number;
  seed: number;
  num_images: number;
}

/** A LoRA of a content: as asked for and, once drawn, with the worker's report. */
export interface UsedLora {
  lora_model_id: string;
  name: string;
  sha256: string;
  scale: number;
  format?: string;
  algorithm?: string;
  rank?: number;
  modules_matched?: number;
  modules_unmatched?: string[];
  cache?: string | null;
}

export interface Content {
  id: string;
  status: Status;
  prompt: string;
  negative_prompt: string;
  avatar_id: string | null;
  batch_id: string | null;
  image_url: string | null;
  thumbnail_url?: string | null;
  images: Picture[];
  parameters: Parameters;
  loras: UsedLora[];
  timings: Record<string, number> | null;
  cost: { usd: number | null; gpu: string | null; seconds: number } | null;
  error: { code: string; message: string } | null;
  model_clean: boolean | null;
  created_at: string;
  started_at: string | null;
  finished_at: string | null;
}

export interface Lora {
  id: string;
  name: string;
  description: string;
  tags: string[];
  sha256: string;
  size_bytes: number;
  base_model: string;
  algorithm: string;
  format: string;
  rank: number;
  modules: number;
  text_encoder: boolean;
  trigger_words: string[];
  strays: string[];
  created_at: string;
}

export interface Avatar {
  id: string;
  name: string;
  base_prompt: string;
  negative_prompt: string;
  lora_model_id: string | null;
  lora_scale: number;
  created_at: string;
}

export type AvatarFields = Omit<Avatar, 'id' | 'created_at'>;

export interface Bounds {
  minimum: number;
  maximum: number;
  default: number;
}

export interface Model {
  name: string | null;
  family: string;
  device: string | null;
  gpu: string | null;
  worker: string;
  known: boolean;
  limits: {
    native_size: number;
    min_side: number;
    max_side: number;
    multiple_of: number;
    prompt_max_chars: number;
    max_loras: number;
    max_images: number;
    lora_max_bytes: number;
  };
  steps: Bounds;
  cfg: Bounds;
  lora_scale: Bounds;
}

export interface GenerateBody {
  prompt?: string;
  avatar_id?: string;
  loras: { lora_model_id: string; scale: number }[];
  negative_prompt: string;
  width: number;
  height: number;
  steps: number;
  cfg: number;
  seed?: number;
  num_images: number;
}

export interface BatchBody extends Omit<GenerateBody, 'prompt'> {
  prompts: string[];
  count: number;
}

export interface Batch {
  batch_id: string;
  total: number;
  queued: number;
  running: number;
  succeeded: number;
  failed: number;
  cancelled: number;
  created_at: string;
}

export interface CostGroup {
  day: string | null;
  id: string | null;
  name: string | null;
  contents: number;
  images: number;
  seconds: number;
  actual_usd: number;
  estimated_usd: number;
  unpriced_seconds: number;
}

export interface CostSummary {
  days: number;
  since: string;
  currency: string;
  prices_as_of: string;
  total: CostGroup;
  by_day: CostGroup[];
  by_avatar: CostGroup[];
  by_lora: CostGroup[];
}

export interface Session {
  signed_in: boolean;
  keys_required: boolean;
  name: string | null;
}

export interface Page<T> {
  items: T[];
  next_cursor: string | null;
}

export const isFinal = (status: Status): boolean => status !== 'queued' && status !== 'running';

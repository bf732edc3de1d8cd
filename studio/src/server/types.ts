// The API's shapes by the page's names. They are generated from docs/openapi.json: `npm run types`.

import type { components } from './openapi';

type Shapes = components['schemas'];

export type Status = Shapes['Status'];
export type Picture = Shapes['ImageOut'];
export type Parameters = Shapes['ParametersOut'];
export type UsedLora = Shapes['UsedLora'];
export type Content = Shapes['ContentOut'];
export type Failure = Shapes['ErrorOut'];
export type Lora = Shapes['LoraOut'];
export type Avatar = Shapes['AvatarOut'];
export type AvatarFields = Omit<Avatar, 'id' | 'cover_url' | 'created_at' | 'updated_at'>;
export type LoraFields = Required<Shapes['LoraPatch']>;
export type Board = Shapes['BoardOut'];
export type Choice = { [Name in keyof Shapes['Choice']]-?: NonNullable<Shapes['Choice'][Name]> };
export type Shared = Shapes['SharedOut'];
export type Share = Shapes['ShareOut'];
export type Verification = Shapes['VerificationOut'];
export type Comparison = Shapes['ComparisonOut'];
export type Bounds = Shapes['Range'];
export type Queue = Shapes['QueueOut'];
export type Model = Shapes['ModelOut'] & { limits: Required<Shapes['ModelLimits']> };
/** With what the page always sends. */
export type GenerateBody = Shapes['GenerateIn'] &
  Required<Pick<Shapes['GenerateIn'], 'loras' | 'negative_prompt' | 'num_images'>>;
export type InputImage = Shapes['InputImageOut'];
export type Style = Shapes['StyleOut'];
export type Wildcard = Shapes['WildcardOut'];
export type Embedding = Shapes['EmbeddingOut'];
export type PromptSyntax = Shapes['PromptSyntax'];
export type Fill = Shapes['Fill'];
export type BatchBody = Shapes['BatchIn'];
export type GridAxis = Shapes['GridAxis'];
export type LoraUse = Shapes['LoraUse'];
export type BatchAccepted = Shapes['BatchAccepted'];
export type Batch = Shapes['BatchOut'];
export type CostGroup = Shapes['CostGroup'];
export type CostSummary = Shapes['CostSummary'];
export type Session = Shapes['SessionOut'];
export type ProblemBody = Shapes['Problem'];
export type ErrorCode = Shapes['ErrorCode'];

/** The JSON of each kind of live event. */
export interface Events {
  queued: Shapes['QueuedEvent'];
  started: Shapes['StartedEvent'];
  progress: Shapes['ProgressEvent'];
  preview: Shapes['PreviewEvent'];
  succeeded: Shapes['EndEvent'];
  failed: Shapes['EndEvent'];
  cancelled: Shapes['EndEvent'];
}

export interface Page<T> {
  items: T[];
  next_cursor: string | null;
}

export const isFinal = (status: Status): boolean => status !== 'queued' && status !== 'running';

// The only file that speaks HTTP. Every error becomes a `Problem`; code 0 means that no answer came.

import type {
  Avatar,
  AvatarFields,
  Batch,
  BatchAccepted,
  BatchBody,
  Board,
  Choice,
  Comparison,
  Content,
  CostSummary,
  Embedding,
  GenerateBody,
  InputImage,
  Lora,
  LoraFields,
  Model,
  Page,
  ProblemBody,
  Queue,
  Session,
  Share,
  Shared,
  Status,
  Style,
  Verification,
  Wildcard,
} from './types';

const API = '/api/v1';
// A cookie alone must not let another site's page change anything.
const OWN_PAGE = { 'X-Requested-With': 'studio' };

/** Facts of an error, such as the size that would fit. */
export type Details = Record<string, unknown>;

/** An error answer (RFC 9457); `status` 0: offline, `field` as the API names it. */
export class Problem extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
    readonly field: string | null = null,
    readonly details: Details = {},
  ) {
    super(message);
  }
}

let onUnauthorized = (): void => {};
let onReach = (_reached: boolean): void => {};

/** Who hears of a refused key, and of the server being reached or not. */
export function setListeners(unauthorized: () => void, reach: (reached: boolean) => void): void {
  onUnauthorized = unauthorized;
  onReach = reach;
}

export function asProblem(error: unknown): Problem {
  if (error instanceof Problem) return error;
  return new Problem(0, 'CLIENT', error instanceof Error ? error.message : String(error));
}

function problemOf(status: number, text: string): Problem {
  try {
    const body = JSON.parse(text) as Partial<ProblemBody>;
    return new Problem(
      status,
      body.error_code ?? 'ERROR',
      body.detail ?? text,
      body.field ?? null,
      body.details ?? {},
    );
  } catch {
    return new Problem(status, 'ERROR', text.slice(0, 300));
  }
}

async function call<T>(
  method: string,
  path: string,
  body?: unknown,
  headers: Record<string, string> = {},
): Promise<T> {
  let answer: Response;
  // Of a form the browser itself says what it is, with the mark between its parts.
  const isJson = body !== undefined && !(body instanceof FormData);
  try {
    answer = await fetch(API + path, {
      method,
      credentials: 'same-origin',
      headers: {
        // Without it what the page's head asked for beforehand is the same request.
        ...(method === 'GET' ? {} : OWN_PAGE),
        ...(isJson ? { 'Content-Type': 'application/json' } : {}),
        ...headers,
      },
      body: isJson ? JSON.stringify(body) : (body as FormData | undefined),
    });
  } catch {
    onReach(false);
    throw new Problem(0, 'OFFLINE', '');
  }
  onReach(true);
  if (answer.ok) return (answer.status === 204 ? undefined : await answer.json()) as T;
  if (answer.status === 401 && path !== '/session') onUnauthorized();
  throw problemOf(answer.status, await answer.text());
}

function formOf(file: Blob, values: Record<string, string> = {}, name?: string): FormData {
  const form = new FormData();
  for (const [name, value] of Object.entries(values)) form.append(name, value);
  if (name === undefined) form.append('file', file);
  else form.append('file', file, name);
  return form;
}

function query(values: Record<string, string | number | boolean | null | undefined>): string {
  const given = Object.entries(values).filter(
    ([, v]) => v !== null && v !== undefined && v !== '' && v !== false,
  );
  return given.length ? '?' + new URLSearchParams(given.map(([k, v]) => [k, String(v)])) : '';
}

export interface ContentFilter {
  status?: Status | '';
  avatar_id?: string;
  batch_id?: string;
  q?: string;
  lora_model_id?: string;
  created_from?: string;
  created_until?: string;
  starred?: boolean;
  board_id?: string;
  deleted?: boolean;
  limit?: number;
  cursor?: string | null;
}

export const api = {
  verify: (file: File) => call<Verification>('POST', '/verify', formOf(file)),
  /** Draw a picture again from the receipt in it. */
  replayFile: (file: File) => call<Content>('POST', '/replays', formOf(file)),
  compareFile: (file: File, id: string) =>
    call<Comparison>('POST', '/replays/comparison', formOf(file, { content_id: id })),
  session: () => call<Session>('GET', '/session'),
  signIn: (api_key: string) => call<void>('POST', '/session', { api_key }),
  signOut: () => call<void>('DELETE', '/session'),
  model: () => call<Model>('GET', '/model'),
  loras: () => call<Page<Lora>>('GET', '/loras/models'),
  changeLora: (id: string, fields: Partial<LoraFields>) =>
    call<Lora>('PATCH', `/loras/models/${id}`, fields),
  deleteLora: (id: string) => call<void>('DELETE', `/loras/models/${id}`),
  avatars: () => call<Page<Avatar>>('GET', '/identities/avatars'),
  createAvatar: (fields: AvatarFields) => call<Avatar>('POST', '/identities/avatars', fields),
  changeAvatar: (id: string, fields: Partial<AvatarFields>) =>
    call<Avatar>('PATCH', `/identities/avatars/${id}`, fields),
  deleteAvatar: (id: string) => call<void>('DELETE', `/identities/avatars/${id}`),
  generate: (body: GenerateBody) =>
    call<Content>('POST', '/content/generate', body, { Prefer: 'respond-async' }),
  contents: (filter: ContentFilter) =>
    call<Page<Content>>('GET', '/content' + query({ ...filter })),
  content: (id: string) => call<Content>('GET', `/content/${id}`),
  bin: (choice: Choice) => call<void>('POST', '/content/bin', choice),
  restore: (choice: Choice) => call<Page<Content>>('POST', '/content/restore', choice),
  star: (image_ids: string[], starred: boolean) =>
    call<void>('POST', '/content/star', { image_ids, starred }),
  boards: () => call<Page<Board>>('GET', '/boards'),
  createBoard: (name: string) => call<Board>('POST', '/boards', { name }),
  renameBoard: (id: string, name: string) => call<void>('PATCH', `/boards/${id}`, { name }),
  deleteBoard: (id: string) => call<void>('DELETE', `/boards/${id}`),
  arrangeBoard: (id: string, add: string[], remove: string[]) =>
    call<void>('POST', `/boards/${id}/images`, { add, remove }),
  share: (image_id: string, hours: number, with_prompt: boolean) =>
    call<Share>('POST', '/shares', { image_id, hours, with_prompt }),
  endShares: (image_id: string) => call<void>('DELETE', `/shares/${image_id}`),
  shared: (token: string) => call<Shared>('GET', `/shared/${token}`),
  queue: () => call<Queue>('GET', '/queue'),
  pauseQueue: (paused: boolean) => call<Queue>('POST', paused ? '/queue/pause' : '/queue/resume'),
  cancel: (id: string) => call<Content>('POST', `/content/${id}/cancel`),
  replay: (id: string) => call<Content>('POST', `/content/${id}/replay`),
  batch: (body: BatchBody) =>
    call<BatchAccepted>('POST', '/content/batch', body),
  repeatBatch: (id: string) => call<BatchAccepted>('POST', `/content/batch/${id}/repeat`),
  cancelBatch: (id: string) => call<Batch>('POST', `/content/batch/${id}/cancel`),
  /** Only the grids, or only the others. */
  batches: (limit: number, cursor: string | null, grid: boolean) =>
    call<Page<Batch>>('GET', '/content/batch' + query({ limit, cursor, grid })),
  readBatch: (id: string) => call<Batch>('GET', `/content/batch/${id}`),
  /** A picture to draw from: uploaded, or drawn here. */
  image: (id: string) => call<InputImage>('GET', `/images/${id}`),
  images: () => call<Page<InputImage>>('GET', '/images'),
  styles: () => call<Page<Style>>('GET', '/words/styles'),
  keepStyle: ({ name, ...style }: Style) =>
    call<Style>('PUT', `/words/styles/${encodeURIComponent(name)}`, style),
  deleteStyle: (name: string) => call<void>('DELETE', `/words/styles/${encodeURIComponent(name)}`),
  wildcards: () => call<Page<Wildcard>>('GET', '/words/wildcards'),
  keepWildcard: ({ name, lines }: Wildcard) =>
    call<Wildcard>('PUT', `/words/wildcards/${encodeURIComponent(name)}`, { lines }),
  deleteWildcard: (name: string) =>
    call<void>('DELETE', `/words/wildcards/${encodeURIComponent(name)}`),
  embeddings: () => call<Page<Embedding>>('GET', '/embeddings'),
  deleteEmbedding: (id: string) => call<void>('DELETE', `/embeddings/${id}`),
  costs: (days: number) => call<CostSummary>('GET', '/costs/summary' + query({ days })),
};

/** Put a picture there to draw from; the same bytes twice are one. */
export const uploadImage = (file: Blob, name: string): Promise<InputImage> =>
  call<InputImage>('POST', '/images', formOf(file, {}, name));

/** Keep a textual inversion under the word that stands for it. */
export const uploadEmbedding = (file: Blob, word: string, name: string): Promise<Embedding> =>
  call<Embedding>('POST', '/embeddings', formOf(file, { name: word }, name));

/** Put a LoRA file into the library; `onProgress` hears the part sent, 0 to 1. */
export function uploadLora(
  file: File,
  name: string,
  onProgress: (part: number) => void,
): Promise<{ lora: Lora; isNew: boolean }> {
  return new Promise((resolve, reject) => {
    const form = new FormData();
    form.append('name', name);
    form.append('file', file);
    // fetch() tells nothing about how much was sent.
    const request = new XMLHttpRequest();
    request.open('POST', `${API}/loras/models/upload`);
    for (const [header, value] of Object.entries(OWN_PAGE)) request.setRequestHeader(header, value);
    request.upload.onprogress = (e) => e.lengthComputable && onProgress(e.loaded / e.total);
    request.onerror = () => reject(new Problem(0, 'OFFLINE', ''));
    request.onload = () => {
      if (request.status === 200 || request.status === 201) {
        resolve({ lora: JSON.parse(request.responseText), isNew: request.status === 201 });
        return;
      }
      if (request.status === 401) onUnauthorized();
      reject(problemOf(request.status, request.responseText));
    };
    request.send(form);
  });
}

/** Open a content's live events after event `after`; the caller reads the body. */
export async function openEvents(id: string, after: string, signal: AbortSignal): Promise<Response> {
  const headers: Record<string, string> = { Accept: 'text/event-stream' };
  if (after) headers['Last-Event-ID'] = after;
  const answer = await fetch(`${API}/content/${id}/events`, {
    credentials: 'same-origin',
    headers,
    signal,
  });
  if (!answer.ok) throw problemOf(answer.status, await answer.text());
  return answer;
}

const isLoopback = (name: string): boolean =>
  /^(localhost|127\.\d+\.\d+\.\d+|\[::1\])$/.test(name) || name.endsWith('.localhost');

/**
 * A signed URL as this page should ask for it: a local server signs for 127.0.0.1 and may be
 * opened as localhost, and a canvas may be saved only where its pictures are of the same origin.
 */
export function pictureUrl(url: string): string {
  const parsed = new URL(url, location.href);
  const same = isLoopback(parsed.hostname) && isLoopback(location.hostname);
  const local = parsed.pathname.startsWith('/files/') && parsed.port === location.port;
  return same && local ? parsed.pathname + parsed.search : url;
}

// What the gallery is narrowed down to, as it stands in the address.

import type { ContentFilter } from '../server/api';
import type { Status } from '../server/types';

export interface Filter {
  q: string;
  status: Status | '';
  avatar_id: string;
  lora: string;
  board: string;
  batch_id: string;
  /** Days of the reader's own calendar, YYYY-MM-DD; `until` is within. */
  since: string;
  until: string;
  starred: boolean;
  deleted: boolean;
}

export const NO_FILTER: Filter = {
  q: '',
  status: '',
  avatar_id: '',
  lora: '',
  board: '',
  batch_id: '',
  since: '',
  until: '',
  starred: false,
  deleted: false,
};

const STATUSES: Status[] = ['succeeded', 'running', 'queued', 'failed', 'cancelled'];
const ID = /^[0-9a-f-]{36}$/i;
const DAY = /^\d{4}-\d\d-\d\d$/;

/** The filter in an address; what is no filter is left out. */
export function filterOf(query: string): Filter {
  const given = new URLSearchParams(query);
  const text = (name: string, pattern: RegExp) => {
    const value = given.get(name) ?? '';
    return pattern.test(value) ? value : '';
  };
  return {
    q: (given.get('q') ?? '').slice(0, 200),
    status: STATUSES.find((one) => one === given.get('status')) ?? '',
    avatar_id: text('avatar', ID),
    lora: text('lora', ID),
    board: text('board', ID),
    batch_id: text('batch', ID),
    since: text('since', DAY),
    until: text('until', DAY),
    starred: given.get('starred') === '1',
    deleted: given.get('deleted') === '1',
  };
}

export function pathOf(filter: Filter): string {
  const names: [string, string][] = [
    ['q', filter.q],
    ['status', filter.status],
    ['avatar', filter.avatar_id],
    ['lora', filter.lora],
    ['board', filter.board],
    ['batch', filter.batch_id],
    ['since', filter.since],
    ['until', filter.until],
    ['starred', filter.starred ? '1' : ''],
    ['deleted', filter.deleted ? '1' : ''],
  ];
  const query = new URLSearchParams(names.filter(([, value]) => value)).toString();
  return query ? `gallery?${query}` : 'gallery';
}

export const isFiltered = (filter: Filter): boolean => pathOf(filter) !== 'gallery';

/** The beginning of a day here, `later` days on. */
function moment(day: string, later = 0): string | undefined {
  if (!day) return undefined;
  const [year = 0, month = 1, date = 1] = day.split('-').map(Number);
  const found = new Date(year, month - 1, date + later);
  return Number.isNaN(found.getTime()) ? undefined : found.toISOString();
}

/** The filter as the API takes it. */
export function wantedOf(filter: Filter): ContentFilter {
  return {
    q: filter.q.trim(),
    status: filter.status,
    avatar_id: filter.avatar_id,
    lora_model_id: filter.lora,
    board_id: filter.board,
    batch_id: filter.batch_id,
    created_from: moment(filter.since),
    created_until: moment(filter.until, 1),
    starred: filter.starred,
    deleted: filter.deleted,
  };
}

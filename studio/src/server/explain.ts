// Every error as one sentence of the page's own, with its facts filled in. Nothing that a server
// wrote for programmers is shown.

import type { Details, Problem } from './api';
import { bytes, duration, number, t, tMaybe } from '../i18n';
import type { Failure } from './types';

interface Fault {
  code: string;
  field: string | null;
  details: Details;
}

const ofNumber = (value: unknown): number | null =>
  typeof value === 'number' && Number.isFinite(value) ? value : null;

/** `loras[2].scale` → `scale`: the last name in it. */
const lastName = (field: string): string => field.match(/([\w-]+)(\[\d+\])*$/)?.[1]?.toLowerCase() ?? field;

/** What people call a field of the API; the page's own word, never the API's name. */
export function fieldName(field: string): string {
  const name = lastName(field);
  const label = tMaybe(`field.${name}`, t('field.other'));
  const place = /\[(\d+)\]/.exec(field)?.[1];
  return place === undefined ? label : `${label} ${Number(place) + 1}`;
}

function valuesOf(details: Details): Record<string, string> {
  const values: Record<string, string> = {};
  for (const [name, value] of Object.entries(details)) {
    const figure = ofNumber(value);
    if (figure !== null) values[name] = number(figure, 2);
    else if (typeof value === 'string') values[name] = value;
  }
  return values;
}

/** Why a field's value is refused, by what the server says was broken. */
function rule({ field, details }: Fault): string {
  const name = fieldName(field ?? '');
  const kind = typeof details.kind === 'string' ? details.kind : '';
  const [low, high] = [ofNumber(details.minimum), ofNumber(details.maximum)];
  const nearest = ofNumber(details.nearest);
  const most = ofNumber(details.max_length);
  const values = { ...valuesOf(details), field: name };
  if (details.reason === 'weight') return t('rule.weight', values);
  if (nearest !== null) return t('rule.nearest', values);
  if (low !== null && high !== null) return t('rule.range', values);
  if (high !== null) return t('rule.atMost', values);
  if (low !== null) return t('rule.atLeast', values);
  if (most !== null) return t('rule.tooLong', { ...values, max: number(most) });
  if (ofNumber(details.min_length) !== null || kind === 'missing') return t('rule.missing', values);
  if (kind === 'extra_forbidden') return t('rule.unknown', values);
  if (/^(int|float|finite|uuid|bool|string|list|dict|url|datetime|date)/.test(kind))
    return t('rule.type', values);
  return t('rule.wrong', values);
}

const BY_RULE = new Set(['INVALID_REQUEST', 'INVALID_PROMPT']);

/** `fault` in one or two sentences. */
export function explainFault(fault: Fault): string {
  const { code, field, details } = fault;
  if (BY_RULE.has(code) && field) return rule(fault);
  const values: Record<string, string> = valuesOf(details);
  values.field = field ? fieldName(field) : '';
  if (ofNumber(details.maximum) !== null && code === 'TOO_LARGE')
    values.maximum = bytes(ofNumber(details.maximum) ?? 0);
  const seconds = ofNumber(details.timeout_seconds);
  if (seconds !== null) values.time = duration(seconds);
  const tried = [
    typeof details.reason === 'string' ? `error.${code}.${details.reason}` : '',
    field ? `error.${code}.${lastName(field)}` : '',
    ofNumber(details.width) !== null && ofNumber(details.height) !== null ? `error.${code}.size` : '',
    `error.${code}`,
  ];
  for (const key of tried) {
    const text = key && tMaybe(key, '', values);
    // A sentence with a gap is worse than the general one.
    if (text && !/\{\w+\}/.test(text)) return text;
  }
  return t('error.unknown');
}

/** What a call was refused for. */
export function explain(problem: Problem): string {
  return explainFault(problem);
}

/** Why a content has no picture. */
export function explainEnd(failure: Failure): string {
  const details = failure.details ?? {};
  const field = typeof details.field === 'string' ? details.field : null;
  return explainFault({ code: failure.code, field, details });
}

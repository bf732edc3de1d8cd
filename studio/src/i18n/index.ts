// Words of the page in the reader's language. en.json is the type: es.json must have the same keys.

import { computed, signal } from '@preact/signals';
import { recall, remember } from '../state/memory';
import type en from './en.json';

export type Key = keyof typeof en;
type Plural<K> = K extends `${infer Base}.other` ? Base : never;
export type PluralKey = Plural<Key>;
export type Language = 'en' | 'es';
export const LANGUAGES: Record<Language, string> = { en: 'English', es: 'Español' };

type Dictionary = Record<Key, string>;
const DICTIONARIES: Partial<Record<Language, Dictionary>> = {};
const RETRY_MS = 1000;
const TRIES = 5;

/** Fetch a language's words: nobody reads two at once. A line that drops them is tried again. */
async function load(wanted: Language): Promise<void> {
  for (let left = TRIES; !DICTIONARIES[wanted]; left--) {
    try {
      DICTIONARIES[wanted] =
        wanted === 'es'
          ? ((await import('./es.json')).default satisfies Dictionary)
          : (await import('./en.json')).default;
    } catch (error) {
      if (left <= 1) throw error;
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }
}

function firstLanguage(): Language {
  const kept = recall<string>('language', '');
  const wanted = [kept, ...navigator.languages].map((tag) => tag.slice(0, 2).toLowerCase());
  return (wanted.find((tag) => tag in LANGUAGES) as Language | undefined) ?? 'en';
}

export const language = signal<Language>('en');

/** Show the page in a language, once its words are there. */
async function show(wanted: Language): Promise<void> {
  // Any words are better than none.
  await load(wanted).catch(() => load('en').catch(() => {}));
  if (DICTIONARIES[wanted]) language.value = wanted;
}

/** Before the page is drawn: in the language chosen on this device, or the browser's. */
export const startLanguage = (): Promise<void> => show(firstLanguage());

export function setLanguage(chosen: Language): void {
  remember('language', chosen);
  void show(chosen);
}

type Values = Record<string, string | number>;

/** The words of `key`, with `{name}` replaced by `values.name`. */
export function t(key: Key, values: Values = {}): string {
  return (DICTIONARIES[language.value]?.[key] ?? key).replace(
    /\{(\w+)\}/g,
    (whole, name: string) => (name in values ? String(values[name]) : whole),
  );
}

/** The words of `key` for `n` things; `{n}` is the number. */
export function plural(key: PluralKey, n: number, values: Values = {}): string {
  const form = rules.value.select(n) === 'one' ? 'one' : 'other';
  return t(`${key}.${form}` as Key, { n: number(n), ...values });
}

/** The words of `key` where the dictionary has it, else `otherwise`. */
export function tMaybe(key: string, otherwise: string, values: Values = {}): string {
  return key in (DICTIONARIES[language.value] ?? {}) ? t(key as Key, values) : otherwise;
}

const rules = computed(() => new Intl.PluralRules(language.value));

/** The reader's own way with numbers and dates: the page's language in the browser's region. */
export const locale = computed<string>(() => {
  const own = navigator.languages.find((tag) => tag.toLowerCase().startsWith(language.value));
  if (own) return own;
  const region = navigator.languages.map((tag) => new Intl.Locale(tag).region).find(Boolean);
  return region ? `${language.value}-${region}` : language.value;
});

const formats = new Map<string, Intl.NumberFormat>();

function formatOf(name: string, options: Intl.NumberFormatOptions): Intl.NumberFormat {
  const key = `${locale.value}|${name}`;
  let format = formats.get(key);
  if (!format) formats.set(key, (format = new Intl.NumberFormat(locale.value, options)));
  return format;
}

export function number(value: number, digits = 0, least = 0): string {
  return formatOf(`${digits}|${least}`, {
    maximumFractionDigits: digits,
    minimumFractionDigits: least,
  }).format(value);
}

/** `value` as it stands in a field: the reader's decimal sign, nothing between the thousands. */
export function plain(value: number): string {
  return formatOf('plain', { maximumFractionDigits: 6, useGrouping: false }).format(value);
}

/** The number in `text`, with a decimal comma or point; NaN where it is none. */
export function readNumber(text: string): number {
  const bare = text.replace(/[\s\u00a0\u202f]/g, '').replace(/^\u2212/, '-');
  const last = Math.max(bare.lastIndexOf(','), bare.lastIndexOf('.'));
  const sign = bare[last];
  // With both signs, the first ones only part the thousands.
  const mixed = bare.includes(',') && bare.includes('.');
  const cleaned = mixed
    ? bare.slice(0, last).replace(/[.,]/g, '') + '.' + bare.slice(last + 1)
    : sign === ','
      ? bare.replace(',', '.')
      : bare;
  return /^-?(\d+\.?\d*|\.\d+)$/.test(cleaned) ? Number(cleaned) : NaN;
}

const decimalComma = (): boolean => plain(0.5).includes(',');

/**
 * The parts of a list of numbers. A comma parts them, unless it is a decimal comma: beside
 * semicolons or lines, without a space after it where others have one, or alone where people
 * write so.
 */
export function splitNumbers(text: string): string[] {
  const whole = text.trim();
  const separator = /[;\n]/.test(whole)
    ? /[;\n]/
    : /,\s/.test(whole)
      ? /,\s+/
      : decimalComma() && (whole.split(',').length === 2 || whole.includes('..'))
        ? /;/
        : /,/;
  return whole.split(separator).map((part) => part.trim().replace(/,$/, '')).filter(Boolean);
}

export function percent(part: number): string {
  return formatOf('percent', { style: 'percent', maximumFractionDigits: 0 }).format(part);
}

/** 0.42 s, 3.1 s, 2 min 5 s. */
export function duration(seconds: number): string {
  if (seconds < 1) return `${number(seconds, 2)}\u00a0s`;
  if (seconds < 10) return `${number(seconds, 1)}\u00a0s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${number(whole)}\u00a0s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes}\u00a0min ${whole % 60}\u00a0s`;
  return `${Math.floor(minutes / 60)}\u00a0h ${minutes % 60}\u00a0min`;
}

export function usd(amount: number): string {
  const digits = amount !== 0 && Math.abs(amount) < 0.1 ? 4 : 2;
  return formatOf(`usd${digits}`, {
    style: 'currency',
    currency: 'USD',
    minimumFractionDigits: 2,
    maximumFractionDigits: digits,
  }).format(amount);
}

export function bytes(count: number): string {
  if (count < 1e3) return `${number(count)} B`;
  if (count < 1e6) return `${number(count / 1e3, 0)} kB`;
  if (count < 1e9) return `${number(count / 1e6, 1)} MB`;
  return `${number(count / 1e9, 2)} GB`;
}

function date(value: Date, options: Intl.DateTimeFormatOptions): string {
  return new Intl.DateTimeFormat(locale.value, options).format(value);
}

export function moment(iso: string): string {
  return date(new Date(iso), { dateStyle: 'medium', timeStyle: 'short' });
}

/** A day of UTC in short, as below a chart. */
export function day(iso: string): string {
  return date(new Date(iso), { day: 'numeric', month: 'short', timeZone: 'UTC' });
}

/** A day of UTC in full. */
export function fullDay(iso: string): string {
  return date(new Date(iso), { dateStyle: 'long', timeZone: 'UTC' });
}

/** The reader's own day on which something was made, as a heading. */
export function ownDay(iso: string): string {
  const value = new Date(iso);
  const year = value.getFullYear() === new Date().getFullYear() ? undefined : 'numeric';
  return date(value, { weekday: 'long', day: 'numeric', month: 'long', year });
}

/** The names in `all` as the language lists them: a, b and c. */
export function listed(all: string[]): string {
  return new Intl.ListFormat(locale.value, { type: 'conjunction' }).format(all);
}

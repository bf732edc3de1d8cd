// Words of the page in the reader's language. en.json is the type: es.json must have the same keys.

import { computed, signal } from '@preact/signals';
import { recall, remember } from '../memory';
import en from './en.json';
import es from './es.json';

export type Key = keyof typeof en;
type Plural<K> = K extends `${infer Base}.other` ? Base : never;
export type PluralKey = Plural<Key>;
export type Language = 'en' | 'es';
export const LANGUAGES: Record<Language, string> = { en: 'English', es: 'Español' };

const DICTIONARIES: Record<Language, Record<Key, string>> = { en, es };

function firstLanguage(): Language {
  const kept = recall<string>('language', '');
  const wanted = [kept, ...navigator.languages].map((tag) => tag.slice(0, 2).toLowerCase());
  return (wanted.find((tag) => tag in DICTIONARIES) as Language | undefined) ?? 'en';
}

export const language = signal<Language>(firstLanguage());

export function setLanguage(chosen: Language): void {
  remember('language', chosen);
  language.value = chosen;
}

type Values = Record<string, string | number>;

/** The words of `key`, with `{name}` replaced by `values.name`. */
export function t(key: Key, values: Values = {}): string {
  return DICTIONARIES[language.value][key].replace(/\{(\w+)\}/g, (whole, name: string) =>
    name in values ? String(values[name]) : whole,
  );
}

/** The words of `key` for `n` things; `{n}` is the number. */
export function plural(key: PluralKey, n: number, values: Values = {}): string {
  const form = rules.value.select(n) === 'one' ? 'one' : 'other';
  return t(`${key}.${form}` as Key, { n: number(n), ...values });
}

/** The words of `key` where the dictionary has it, else `otherwise`. */
export function tMaybe(key: string, otherwise: string): string {
  return key in en ? t(key as Key) : otherwise;
}

const rules = computed(() => new Intl.PluralRules(language.value));
const formats = new Map<string, Intl.NumberFormat>();

export function number(value: number, digits = 0, least = 0): string {
  const name = `${language.value}|${digits}|${least}`;
  let format = formats.get(name);
  if (!format) {
    format = new Intl.NumberFormat(language.value, {
      maximumFractionDigits: digits,
      minimumFractionDigits: least,
    });
    formats.set(name, format);
  }
  return format.format(value);
}

export function percent(part: number): string {
  return number(Math.round(part * 100)) + '\u00a0%';
}

/** 0.42 s, 3.1 s, 2 min 5 s. */
export function duration(seconds: number): string {
  if (seconds < 1) return `${number(seconds, 2)}\u00a0s`;
  if (seconds < 10) return `${number(seconds, 1)}\u00a0s`;
  if (seconds < 60) return `${number(Math.round(seconds))}\u00a0s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes}\u00a0min ${Math.round(seconds % 60)}\u00a0s`;
  return `${Math.floor(minutes / 60)}\u00a0h ${minutes % 60}\u00a0min`;
}

export function usd(amount: number): string {
  const digits = amount !== 0 && amount < 0.1 ? 4 : 2;
  return `$${number(amount, digits, 2)}`;
}

export function bytes(count: number): string {
  if (count < 1e3) return `${number(count)} B`;
  if (count < 1e6) return `${number(count / 1e3, 0)} kB`;
  if (count < 1e9) return `${number(count / 1e6, 1)} MB`;
  return `${number(count / 1e9, 2)} GB`;
}

export function moment(iso: string): string {
  const format: Intl.DateTimeFormatOptions = { dateStyle: 'medium', timeStyle: 'short' };
  return new Intl.DateTimeFormat(language.value, format).format(new Date(iso));
}

export function day(iso: string): string {
  const format: Intl.DateTimeFormatOptions = { day: 'numeric', month: 'short', timeZone: 'UTC' };
  return new Intl.DateTimeFormat(language.value, format).format(new Date(iso));
}

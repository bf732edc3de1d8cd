// Everything that was made, newest first, with filters; two chosen pictures can be compared.

import { signal, useSignalEffect } from '@preact/signals';
import { useCallback, useEffect, useRef, useState } from 'preact/hooks';
import { remove } from '../actions';
import { contentList, type ContentList } from '../contentList';
import { plural, t } from '../i18n';
import { VirtualGrid } from '../parts/virtualGrid';
import { Button, Confirm, Empty, Loading } from '../parts/ui';
import { go } from '../route';
import { avatars, feed } from '../store';
import type { Status } from '../types';

const STATUSES: Status[] = ['succeeded', 'running', 'queued', 'failed', 'cancelled'];

interface Filter {
  status: Status | '';
  avatar_id: string;
  batch_id: string;
}

const NO_FILTER: Filter = { status: '', avatar_id: '', batch_id: '' };
const filter = signal<Filter>(NO_FILTER);
const size = signal(168);
let kept: { filter: Filter; list: ContentList; top: number } | null = null;

/** The list that the gallery shows, for a picture's neighbours; null before it was opened. */
export const galleryIds = (): string[] | null => kept?.list.ids.value ?? null;

export function forgetGallery(): void {
  kept = null;
  filter.value = NO_FILTER;
}

export function showBatch(batch_id: string): void {
  filter.value = { ...NO_FILTER, batch_id };
  go('gallery');
}

function currentList(): ContentList {
  if (kept?.filter !== filter.value) {
    kept = { filter: filter.value, list: contentList({ ...filter.value }), top: 0 };
  }
  return kept.list;
}

export function GalleryView() {
  const list = currentList();
  const [chosen, setChosen] = useState<ReadonlySet<string> | null>(null);
  const [isAsked, setAsked] = useState(false);
  const heading = useRef<HTMLHeadingElement>(null);
  const isFiltered = filter.value !== NO_FILTER && Object.values(filter.value).some(Boolean);

  // What was made meanwhile comes to the front; where a filter is set, only a reload shows it.
  useSignalEffect(() => {
    const newest = feed.value ?? [];
    const ids = list.ids.peek();
    if (isFiltered || !ids.length) return;
    const known = new Set(ids);
    const fresh = newest.slice(0, newest.indexOf(ids[0] ?? '')).filter((id) => !known.has(id));
    if (fresh.length) list.ids.value = [...fresh, ...ids];
  });

  useEffect(() => {
    const scroller = heading.current?.closest('main');
    if (scroller && kept) scroller.scrollTop = kept.top;
    const note = () => {
      if (scroller && kept) kept.top = scroller.scrollTop;
    };
    scroller?.addEventListener('scroll', note, { passive: true });
    return () => scroller?.removeEventListener('scroll', note);
  }, [list]);

  const more = useCallback(() => void list.more(), [list]);
  useEffect(more, [more]);
  const toggle = (id: string) => {
    const next = new Set(chosen);
    if (!next.delete(id)) next.add(id);
    setChosen(next);
  };
  const ids = list.ids.value;
  const pair = [...(chosen ?? [])];
  const removeChosen = async () => {
    for (const id of pair) {
      if (!(await remove(id))) break;
      list.ids.value = list.ids.value.filter((other) => other !== id);
    }
    setChosen(null);
  };
  return (
    <div class="page gallery">
      <header class="page-head">
        <h1 ref={heading}>{t('nav.gallery')}</h1>
        <Filters />
        {chosen ? (
          <div class="row" role="group" aria-label={t('gallery.chosen')}>
            <span class="num">{plural('gallery.count', pair.length)}</span>
            <Button
              icon="compare"
              disabled={pair.length !== 2}
              onClick={() => go(`compare/${pair.join('/')}`)}
            >
              {t('action.compare')}
            </Button>
            <Button icon="trash" disabled={!pair.length} onClick={() => setAsked(true)}>
              {t('action.delete')}
            </Button>
            <Button kind="quiet" onClick={() => setChosen(null)}>
              {t('action.done')}
            </Button>
          </div>
        ) : (
          <Button icon="check" onClick={() => setChosen(new Set())}>
            {t('gallery.choose')}
          </Button>
        )}
      </header>
      {ids.length > 0 && (
        <VirtualGrid
          ids={ids}
          least={size.value}
          label={t('nav.gallery')}
          chosen={chosen ?? undefined}
          onOpen={chosen ? toggle : undefined}
          onNearEnd={more}
        />
      )}
      {list.isLoading.value && <Loading />}
      {list.hasFailed.value && (
        <Button icon="again" onClick={more}>
          {t('action.retry')}
        </Button>
      )}
      {!ids.length && list.isWhole.value && (
        <Empty icon="gallery" title={t(isFiltered ? 'gallery.none' : 'gallery.empty')}>
          {isFiltered ? (
            <Button onClick={() => (filter.value = NO_FILTER)}>{t('gallery.noFilter')}</Button>
          ) : (
            <a class="button accent" href="#/create">
              {t('first.action')}
            </a>
          )}
        </Empty>
      )}
      {isAsked && (
        <Confirm
          title={t('viewer.deleteTitle')}
          text={plural('gallery.deleteText', pair.length)}
          action={t('action.delete')}
          onConfirm={() => void removeChosen()}
          onClose={() => setAsked(false)}
        />
      )}
    </div>
  );
}

function Filters() {
  const set = (changes: Partial<Filter>) => (filter.value = { ...filter.value, ...changes });
  return (
    <div class="row filters">
      <select
        aria-label={t('gallery.status')}
        value={filter.value.status}
        onChange={(e) => set({ status: e.currentTarget.value as Status | '' })}
      >
        <option value="">{t('gallery.anyStatus')}</option>
        {STATUSES.map((status) => (
          <option key={status} value={status}>
            {t(`status.${status}`)}
          </option>
        ))}
      </select>
      {(avatars.value?.length ?? 0) > 0 && (
        <select
          aria-label={t('form.avatar')}
          value={filter.value.avatar_id}
          onChange={(e) => set({ avatar_id: e.currentTarget.value })}
        >
          <option value="">{t('gallery.anyAvatar')}</option>
          {avatars.value?.map((one) => (
            <option key={one.id} value={one.id}>
              {one.name}
            </option>
          ))}
        </select>
      )}
      {filter.value.batch_id && (
        <Button icon="close" onClick={() => set({ batch_id: '' })}>
          {t('gallery.batch')}
        </Button>
      )}
      <label class="row">
        <span class="unseen">{t('gallery.size')}</span>
        <input
          type="range"
          class="zoom"
          min={96}
          max={320}
          step={8}
          value={size.value}
          style={{ '--part': `${((size.value - 96) / (320 - 96)) * 100}%` }}
          onInput={(e) => (size.value = e.currentTarget.valueAsNumber)}
        />
      </label>
    </div>
  );
}

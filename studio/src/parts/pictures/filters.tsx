// What narrows the gallery down.

import { signal } from '@preact/signals';
import { useEffect, useRef, useState } from 'preact/hooks';
import { isFiltered, NO_FILTER, type Filter } from '../../state/galleryFilter';
import { t } from '../../i18n';
import { recall, remember } from '../../state/memory';
import { avatars, loras } from '../../state/store';
import type { Status } from '../../server/types';
import { BoardChoice } from './boards';
import { Button } from '../ui';

const STATUSES: Status[] = ['succeeded', 'running', 'queued', 'failed', 'cancelled'];
const TYPING_MS = 300;
const LEAST = 96;
const MOST = 320;

/** Least side of a thumb, px. */
export const size = signal(recall('thumbs', 168));

interface Props {
  filter: Filter;
  onChange: (changes: Partial<Filter>) => void;
}

export function Filters({ filter, onChange }: Props) {
  const [isOpen, setOpen] = useState(() => isFiltered({ ...filter, q: '', starred: false }));
  return (
    <div class="filters">
      <div class="row">
        <Search text={filter.q} onChange={(q) => onChange({ q })} />
        <Button
          icon="star"
          iconOnly
          aria-pressed={filter.starred}
          onClick={() => onChange({ starred: !filter.starred })}
        >
          {t('gallery.starred')}
        </Button>
        <Button icon="filter" iconOnly aria-expanded={isOpen} onClick={() => setOpen(!isOpen)}>
          {t('gallery.filters')}
        </Button>
        <Size />
        {isFiltered(filter) && (
          <Button icon="close" kind="quiet" onClick={() => onChange(NO_FILTER)}>
            {t('gallery.noFilter')}
          </Button>
        )}
      </div>
      {isOpen && <More filter={filter} onChange={onChange} />}
    </div>
  );
}

function Search({ text, onChange }: { text: string; onChange: (text: string) => void }) {
  const [typed, setTyped] = useState(text);
  const timer = useRef(0);
  useEffect(() => setTyped(text), [text]);
  useEffect(() => () => clearTimeout(timer.current), []);
  return (
    <input
      type="search"
      maxLength={200}
      aria-label={t('gallery.search')}
      placeholder={t('gallery.search')}
      value={typed}
      onInput={(e) => {
        const { value } = e.currentTarget;
        setTyped(value);
        clearTimeout(timer.current);
        timer.current = window.setTimeout(() => onChange(value), TYPING_MS);
      }}
    />
  );
}

function More({ filter, onChange }: Props) {
  return (
    <div class="row more-filters">
      <select
        aria-label={t('gallery.status')}
        value={filter.status}
        onChange={(e) => onChange({ status: e.currentTarget.value as Status | '' })}
      >
        <option value="">{t('gallery.anyStatus')}</option>
        {STATUSES.map((status) => (
          <option key={status} value={status}>
            {t(`status.${status}`)}
          </option>
        ))}
      </select>
      {(loras.value?.length ?? 0) > 0 && (
        <select
          aria-label={t('gallery.lora')}
          value={filter.lora}
          onChange={(e) => onChange({ lora: e.currentTarget.value })}
        >
          <option value="">{t('gallery.anyLora')}</option>
          {loras.value?.map((one) => (
            <option key={one.id} value={one.id}>
              {one.name}
            </option>
          ))}
        </select>
      )}
      {(avatars.value?.length ?? 0) > 0 && (
        <select
          aria-label={t('form.avatar')}
          value={filter.avatar_id}
          onChange={(e) => onChange({ avatar_id: e.currentTarget.value })}
        >
          <option value="">{t('gallery.anyAvatar')}</option>
          {avatars.value?.map((one) => (
            <option key={one.id} value={one.id}>
              {one.name}
            </option>
          ))}
        </select>
      )}
      <BoardChoice chosen={filter.board} onChoose={(board) => onChange({ board })} />
      <label class="row">
        <span class="muted small">{t('gallery.since')}</span>
        <input
          type="date"
          value={filter.since}
          max={filter.until || undefined}
          onChange={(e) => onChange({ since: e.currentTarget.value })}
        />
      </label>
      <label class="row">
        <span class="muted small">{t('gallery.until')}</span>
        <input
          type="date"
          value={filter.until}
          min={filter.since || undefined}
          onChange={(e) => onChange({ until: e.currentTarget.value })}
        />
      </label>
      {filter.batch_id && (
        <Button icon="close" onClick={() => onChange({ batch_id: '' })}>
          {t('gallery.batch')}
        </Button>
      )}
      <Button
        icon="trash"
        aria-pressed={filter.deleted}
        onClick={() => onChange({ ...NO_FILTER, deleted: !filter.deleted })}
      >
        {t('gallery.bin')}
      </Button>
    </div>
  );
}

function Size() {
  return (
    <label class="row">
      <span class="unseen">{t('gallery.size')}</span>
      <input
        type="range"
        class="zoom"
        min={LEAST}
        max={MOST}
        step={8}
        value={size.value}
        style={{ '--from': '0%', '--part': `${((size.value - LEAST) / (MOST - LEAST)) * 100}%` }}
        onInput={(e) => {
          size.value = e.currentTarget.valueAsNumber;
          remember('thumbs', size.value);
        }}
      />
    </label>
  );
}

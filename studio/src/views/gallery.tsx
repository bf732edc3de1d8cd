// Everything that was made, newest first; what is looked for stands in the address.

import { useSignalEffect } from '@preact/signals';
import { useCallback, useEffect, useLayoutEffect, useRef, useState } from 'preact/hooks';
import { remove, restored } from '../state/actions';
import { ownDay, t } from '../i18n';
import { expanded, readItem } from '../state/items';
import { ended } from '../server/live';
import { filterOf, isFiltered, pathOf, type Filter } from '../state/galleryFilter';
import { placeFor } from '../state/galleryPlace';
import { Filters, size } from '../parts/pictures/filters';
import { Selection } from '../parts/pictures/selection';
import { VirtualGrid } from '../parts/pictures/virtualGrid';
import { Button, Empty, Loading } from '../parts/ui';
import { replace, route } from '../state/route';
import { contentOf, feed } from '../state/store';

export function GalleryView() {
  const { query } = route.value;
  const filter = filterOf(query);
  const place = placeFor(query);
  const { list } = place;
  const [chosen, setChosen] = useState<ReadonlySet<string> | null>(null);
  const [anchor, setAnchor] = useState<string | null>(null);
  const [topId, setTopId] = useState<string | null>(null);
  const heading = useRef<HTMLHeadingElement>(null);
  const set = (changes: Partial<Filter>) => replace(pathOf({ ...filter, ...changes }));

  // What was made, ended or came back meanwhile: the first page is asked for again.
  useSignalEffect(() => {
    void [feed.value?.[0], ended.value, restored.value];
    if (list.ids.peek().length || list.isWhole.peek()) void list.refresh();
  });
  useEffect(() => setChosen(null), [query]);
  // A plain effect ends only after the next view was painted: by then a shorter page has scrolled up.
  const isBack = useRef(false);
  useLayoutEffect(() => {
    const scroller = heading.current?.closest('main');
    const note = () => {
      if (scroller && isBack.current) place.top = scroller.scrollTop;
    };
    scroller?.addEventListener('scroll', note, { passive: true });
    return () => scroller?.removeEventListener('scroll', note);
  }, [list]);
  // After the grid has its height.
  useEffect(() => {
    const scroller = heading.current?.closest('main');
    if (scroller) scroller.scrollTop = place.top;
    isBack.current = true;
  }, [list]);

  const more = useCallback(() => void list.more(), [list]);
  useEffect(more, [more]);
  const keys = expanded(list.ids.value);
  const shownKeys = filter.starred ? keys.filter(isStarred) : keys;

  const choose = (key: string, e: MouseEvent) => {
    const next = new Set(chosen);
    const [from, to] = [shownKeys.indexOf(anchor ?? ''), shownKeys.indexOf(key)];
    if (e.shiftKey && from >= 0) {
      for (const one of shownKeys.slice(Math.min(from, to), Math.max(from, to) + 1)) next.add(one);
    } else if (!next.delete(key)) next.add(key);
    setAnchor(key);
    setChosen(next);
  };
  useEffect(() => {
    if (!chosen) return;
    const onKey = (e: KeyboardEvent) => {
      const target = e.target as Element;
      if (target.closest('input, textarea, select, dialog, [role=menu]')) return;
      if (e.key === 'Escape') setChosen(null);
      else if (e.key === 'a' && (e.ctrlKey || e.metaKey)) setChosen(new Set(shownKeys));
      else return;
      e.preventDefault();
    };
    addEventListener('keydown', onKey);
    return () => removeEventListener('keydown', onKey);
  }, [chosen, shownKeys.length]);

  const day = topId && contentOf(readItem(topId).id).value?.created_at;
  return (
    <div class="page gallery">
      <header class="page-head sticky">
        <h1 ref={heading}>{t('nav.gallery')}</h1>
        {chosen ? (
          <Selection
            chosen={[...chosen]}
            isBin={filter.deleted}
            onAll={() => setChosen(new Set(shownKeys))}
            onDone={() => setChosen(null)}
            onRemove={async () => {
              const all = [...chosen];
              if (!(await remove(all, () => void list.refresh()))) return;
              list.drop(all.map((key) => readItem(key).id).filter((id) => !contentOf(id).peek()));
              setChosen(null);
            }}
            onRestored={(ids) => {
              list.drop(ids);
              setChosen(null);
            }}
          />
        ) : (
          <>
            <Filters filter={filter} onChange={set} />
            <Button icon="check" onClick={() => setChosen(new Set())}>
              {t('gallery.choose')}
            </Button>
          </>
        )}
        {day && <p class="gallery-day muted small">{ownDay(day)}</p>}
      </header>
      {shownKeys.length > 0 && (
        <VirtualGrid
          ids={shownKeys}
          least={size.value}
          label={t('nav.gallery')}
          chosen={chosen ?? undefined}
          focusOn={place.opened}
          onOpen={chosen ? choose : undefined}
          onTop={setTopId}
          onNearEnd={more}
        />
      )}
      {list.isLoading.value && <Loading />}
      {list.hasFailed.value && (
        <Button icon="again" onClick={more}>
          {t('action.retry')}
        </Button>
      )}
      {!shownKeys.length && list.isWhole.value && (
        <Empty
          icon={filter.deleted ? 'trash' : 'gallery'}
          title={t(filter.deleted ? 'gallery.emptyBin' : isFiltered(filter) ? 'gallery.none' : 'gallery.empty')}
        >
          {isFiltered(filter) ? (
            <Button onClick={() => replace('gallery')}>{t('gallery.noFilter')}</Button>
          ) : (
            <a class="button accent" href="#/create">
              {t('first.action')}
            </a>
          )}
        </Empty>
      )}
    </div>
  );
}

const isStarred = (key: string): boolean => {
  const { id, place } = readItem(key);
  return contentOf(id).value?.images[place]?.starred ?? false;
};

// A grid of thumbs in which only the rows near the window are in the document.

import { useEffect, useLayoutEffect, useRef, useState } from 'preact/hooks';
import { Thumb } from './picture';

const GAP = 6;
const AHEAD_ROWS = 4;

interface Props {
  ids: string[];
  /** Least side of a thumb, px. */
  least: number;
  label: string;
  chosen?: ReadonlySet<string>;
  onOpen?: (id: string, e: MouseEvent) => void;
  /** Has the focus once, when the grid comes into the document. */
  focusOn?: string | null;
  /** Hears which thumb is the first in sight. */
  onTop?: (id: string) => void;
  /** The end of what is there came near. */
  onNearEnd: () => void;
}

interface Window {
  columns: number;
  side: number;
  first: number;
  last: number;
  /** The first row in sight. */
  top: number;
}

/** Scrolls with the page's main part. Arrow keys, Home and End move between thumbs. */
export function VirtualGrid(props: Props) {
  const { ids, least, label, chosen, onOpen, focusOn, onTop, onNearEnd } = props;
  const box = useRef<HTMLDivElement>(null);
  const [seen, setSeen] = useState<Window>({
    columns: 4,
    side: least,
    first: 0,
    last: 8,
    top: 0,
  });
  const [current, setCurrent] = useState(0);
  const wanted = useRef<number | null>(null);

  useLayoutEffect(() => {
    const element = box.current;
    const scroller = element?.closest<HTMLElement>('main');
    if (!element || !scroller) return;
    const look = () => {
      const columns = Math.max(2, Math.floor((element.clientWidth + GAP) / (least + GAP)));
      const side = (element.clientWidth - GAP * (columns - 1)) / columns;
      const above = scroller.getBoundingClientRect().top - element.getBoundingClientRect().top;
      const row = side + GAP;
      const top = Math.max(0, Math.floor(above / row));
      const first = Math.max(0, top - AHEAD_ROWS);
      const last = Math.ceil((above + scroller.clientHeight) / row) + AHEAD_ROWS;
      setSeen((old) =>
        old.columns === columns &&
        old.side === side &&
        old.top === top &&
        old.first === first &&
        old.last === last
          ? old
          : { columns, side, first, last, top },
      );
    };
    look();
    const watch = new ResizeObserver(look);
    watch.observe(element);
    watch.observe(scroller);
    scroller.addEventListener('scroll', look, { passive: true });
    return () => {
      watch.disconnect();
      scroller.removeEventListener('scroll', look);
    };
  }, [least]);

  const { columns, side, first, last, top } = seen;
  const rows = Math.ceil(ids.length / columns);
  useEffect(() => {
    if (last >= rows - AHEAD_ROWS) onNearEnd();
  }, [last, rows, onNearEnd]);

  useEffect(() => {
    const place = focusOn ? ids.indexOf(focusOn) : -1;
    if (place < 0) return;
    setCurrent(place);
    // Not where a click or a key has it meanwhile.
    const isFree = document.activeElement === document.body || document.activeElement?.id === 'main';
    if (isFree) wanted.current = place;
  }, []);
  useEffect(() => {
    const id = ids[top * columns];
    if (id) onTop?.(id);
  }, [top, columns, ids]);

  useEffect(() => {
    if (wanted.current === null) return;
    const thumb = box.current?.querySelector<HTMLElement>(`[data-id="${ids[wanted.current]}"]`);
    if (thumb) {
      thumb.focus({ preventScroll: false });
      wanted.current = null;
    }
  });

  const onKeyDown = (e: KeyboardEvent) => {
    const moves: Record<string, number> = {
      ArrowRight: current + 1,
      ArrowLeft: current - 1,
      ArrowDown: current + columns,
      ArrowUp: current - columns,
      Home: 0,
      End: ids.length - 1,
    };
    const to = moves[e.key];
    if (to === undefined || to < 0 || to >= ids.length) return;
    e.preventDefault();
    setCurrent(to);
    // At once where it is there: the next key may come before the next frame.
    const there = box.current?.querySelector<HTMLElement>(`[data-id="${ids[to]}"]`);
    if (there) {
      there.focus();
      return;
    }
    wanted.current = to;
    const top = Math.floor(to / columns) * (side + GAP);
    const scroller = box.current?.closest<HTMLElement>('main');
    if (!box.current || !scroller) return;
    const offset = box.current.getBoundingClientRect().top - scroller.getBoundingClientRect().top;
    if (offset + top < 0 || offset + top + side > scroller.clientHeight)
      scroller.scrollTop += offset + top - scroller.clientHeight / 2;
  };

  const start = first * columns;
  const shown = ids.slice(start, (last + 1) * columns);
  const inTabOrder = Math.min(Math.max(current, start), start + shown.length - 1);
  return (
    <div
      ref={box}
      class="virtual-grid"
      role="list"
      aria-label={label}
      style={{ height: `${Math.max(0, rows * (side + GAP) - GAP)}px` }}
      onKeyDown={onKeyDown}
      onFocusIn={(e) => {
        const id = (e.target as HTMLElement).dataset.id;
        const place = id ? ids.indexOf(id) : -1;
        if (place >= 0 && wanted.current === null) setCurrent(place);
      }}
    >
      {shown.map((id, offset) => {
        const place = start + offset;
        const x = (place % columns) * (side + GAP);
        const y = Math.floor(place / columns) * (side + GAP);
        return (
          <div
            key={id}
            role="listitem"
            aria-posinset={place + 1}
            aria-setsize={ids.length}
            style={{ width: `${side}px`, height: `${side}px`, transform: `translate(${x}px, ${y}px)` }}
          >
            <Thumb
              id={id}
              chosen={chosen?.has(id)}
              ticked={chosen?.has(id)}
              onOpen={onOpen}
              tabIndex={place === inTabOrder ? 0 : -1}
            />
          </div>
        );
      })}
    </div>
  );
}

// The picture alone, as large as the window or pixel by pixel: zoom, pan, swipe, keys.

import { useEffect, useRef, useState } from 'preact/hooks';
import { pictureUrl } from '../../server/api';
import { download } from '../../device/files';
import { number, t } from '../../i18n';
import type { Content } from '../../server/types';
import { offerFile } from './picture';
import { Button } from '../ui';

interface Props {
  content: Content;
  place: number;
  /** The picture before (-1) or after (1); undefined where there is none. */
  onMove: (by: -1 | 1) => void;
  onClose: () => void;
}

interface View {
  /** CSS px per pixel of the picture; null: as large as it fits. */
  scale: number | null;
  x: number;
  y: number;
}

const FIT: View = { scale: null, x: 0, y: 0 };
const MOST = 16;
const SWIPE_PX = 60;

export function Lightbox({ content, place, onMove, onClose }: Props) {
  const dialog = useRef<HTMLDialogElement>(null);
  const stage = useRef<HTMLDivElement>(null);
  const [view, setView] = useState<View>(FIT);
  const [room, setRoom] = useState({ width: innerWidth, height: innerHeight });
  const pointers = useRef(new Map<number, { x: number; y: number }>());
  const begun = useRef<{ x: number; y: number; view: View } | null>(null);
  const picture = content.images[place];
  useEffect(() => {
    dialog.current?.showModal();
    const watch = new ResizeObserver(([entry]) => {
      if (entry) setRoom({ width: entry.contentRect.width, height: entry.contentRect.height });
    });
    if (stage.current) watch.observe(stage.current);
    return () => watch.disconnect();
  }, []);
  useEffect(() => setView(FIT), [content.id, place]);
  if (!picture) return null;
  // Pixel by pixel means the screen's own pixels.
  const one = 1 / devicePixelRatio;
  const fit = Math.min(room.width / picture.width, room.height / picture.height);
  const scale = view.scale ?? fit;
  const least = Math.min(fit, one);

  const held = (next: View): View => {
    if (next.scale === null) return FIT;
    const half = (side: number, all: number) => Math.max(0, (side * (next.scale ?? 1) - all) / 2);
    const x = half(picture.width, room.width);
    const y = half(picture.height, room.height);
    return {
      scale: next.scale,
      x: Math.min(x, Math.max(-x, next.x)),
      y: Math.min(y, Math.max(-y, next.y)),
    };
  };
  /** Zoom so that what is under the point (from the middle) stays there. */
  const zoom = (to: number, x = 0, y = 0) =>
    setView((old) => {
      const before = old.scale ?? fit;
      const after = Math.min(MOST, Math.max(least, to));
      const by = after / before;
      return held({ scale: after, x: x - (x - old.x) * by, y: y - (y - old.y) * by });
    });
  const middle = (e: { clientX: number; clientY: number }): [number, number] => {
    const box = stage.current?.getBoundingClientRect();
    if (!box) return [0, 0];
    return [e.clientX - box.left - box.width / 2, e.clientY - box.top - box.height / 2];
  };
  const toggle = (x = 0, y = 0) =>
    view.scale === null && Math.abs(fit - one) > 0.01 ? zoom(one, x, y) : setView(FIT);

  const onKey = (e: KeyboardEvent) => {
    const step = 80;
    const pan = (x: number, y: number) => setView((old) => held({ ...old, x: old.x + x, y: old.y + y }));
    const isWhole = view.scale === null || view.scale <= fit;
    const keys: Record<string, () => void> = {
      ArrowLeft: () => (isWhole ? onMove(-1) : pan(step, 0)),
      ArrowRight: () => (isWhole ? onMove(1) : pan(-step, 0)),
      ArrowUp: () => pan(0, step),
      ArrowDown: () => pan(0, -step),
      '+': () => zoom(scale * 1.25),
      '=': () => zoom(scale * 1.25),
      '-': () => zoom(scale / 1.25),
      '0': () => setView(FIT),
      '1': () => zoom(one),
      f: () => void (document.fullscreenElement ? document.exitFullscreen() : dialog.current?.requestFullscreen()),
    };
    const act = keys[e.key];
    if (!act || e.ctrlKey || e.metaKey || e.altKey) return;
    e.preventDefault();
    e.stopPropagation();
    act();
  };

  const onDown = (e: PointerEvent) => {
    // A mouse drags the whole picture out of the page; zoomed in it moves it.
    if (e.pointerType === 'mouse' && view.scale === null) return;
    (e.currentTarget as Element).setPointerCapture(e.pointerId);
    pointers.current.set(e.pointerId, { x: e.clientX, y: e.clientY });
    begun.current = { x: e.clientX, y: e.clientY, view };
  };
  const onMovePointer = (e: PointerEvent) => {
    const before = pointers.current.get(e.pointerId);
    if (!before) return;
    const others = [...pointers.current].filter(([id]) => id !== e.pointerId).map(([, p]) => p);
    const now = { x: e.clientX, y: e.clientY };
    pointers.current.set(e.pointerId, now);
    const other = others[0];
    if (other) {
      const apart = (p: { x: number; y: number }) => Math.hypot(p.x - other.x, p.y - other.y);
      const [x, y] = middle({ clientX: (now.x + other.x) / 2, clientY: (now.y + other.y) / 2 });
      if (apart(before) > 0) zoom(scale * (apart(now) / apart(before)), x, y);
    } else if (view.scale !== null) {
      setView((old) => held({ ...old, x: old.x + now.x - before.x, y: old.y + now.y - before.y }));
    }
  };
  const onUp = (e: PointerEvent) => {
    const start = begun.current;
    pointers.current.delete(e.pointerId);
    if (!start || pointers.current.size) return;
    begun.current = null;
    const [x, y] = [e.clientX - start.x, e.clientY - start.y];
    if (start.view.scale === null && view.scale === null && Math.abs(x) > Math.max(SWIPE_PX, 2 * Math.abs(y)))
      onMove(x > 0 ? -1 : 1);
  };

  const part = Math.round((scale / one) * 100);
  return (
    <dialog
      ref={dialog}
      class="lightbox"
      aria-label={t('lightbox.label')}
      onClose={onClose}
      onKeyDown={onKey}
    >
      <div
        ref={stage}
        class="lightbox-stage"
        onWheel={(e) => {
          e.preventDefault();
          const [x, y] = middle(e);
          zoom(scale * Math.exp(-e.deltaY / 400), x, y);
        }}
        onPointerDown={onDown}
        onPointerMove={onMovePointer}
        onPointerUp={onUp}
        onPointerCancel={onUp}
        onDblClick={(e) => toggle(...middle(e))}
      >
        <img
          src={pictureUrl(picture.url)}
          alt={content.prompt || t('picture.noPrompt')}
          data-scale={scale.toFixed(3)}
          draggable={view.scale === null}
          onDragStart={(e) => offerFile(e, content, place)}
          class={view.scale !== null && scale > one * 2 ? 'pixels' : ''}
          style={{
            width: `${picture.width * scale}px`,
            height: `${picture.height * scale}px`,
            transform: `translate(-50%, -50%) translate(${view.x}px, ${view.y}px)`,
          }}
        />
      </div>
      <div class="lightbox-bar">
        <Button icon="left" kind="quiet" iconOnly onClick={() => onMove(-1)}>
          {t('viewer.newer')}
        </Button>
        <Button icon="right" kind="quiet" iconOnly onClick={() => onMove(1)}>
          {t('viewer.older')}
        </Button>
        <span class="num small" role="status">
          {`${picture.width} × ${picture.height} · ${number(part)} %`}
        </span>
        <Button icon="minus" kind="quiet" iconOnly onClick={() => zoom(scale / 1.25)}>
          {t('lightbox.smaller')}
        </Button>
        <Button icon="plus" kind="quiet" iconOnly onClick={() => zoom(scale * 1.25)}>
          {t('lightbox.larger')}
        </Button>
        <Button kind="quiet" aria-pressed={view.scale === null} onClick={() => setView(FIT)}>
          {t('lightbox.fit')}
        </Button>
        <Button kind="quiet" aria-pressed={view.scale === one} onClick={() => zoom(one)}>
          1:1
        </Button>
        <Button icon="download" kind="quiet" iconOnly onClick={() => void download(content, place)}>
          {t('action.download')}
        </Button>
        <Button icon="close" kind="quiet" iconOnly onClick={() => dialog.current?.close()}>
          {t('action.close')}
        </Button>
      </div>
    </dialog>
  );
}

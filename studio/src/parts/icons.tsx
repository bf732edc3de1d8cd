// Line icons on a 20-unit grid, drawn for this page.

const PATHS = {
  create: 'M4 16l1-4 8.5-8.5a2.1 2.1 0 013 3L8 15l-4 1zM11.5 5.5l3 3',
  gallery: 'M3 3.5h6v6H3zM11 3.5h6v6h-6zM3 11.5h6v5H3zM11 11.5h6v5h-6z',
  grid: 'M3 7.5h14M3 12.5h14M7.5 3v14M12.5 3v14M3 3h14v14H3z',
  batches: 'M6 3h11v11M3 6h11v11H3z',
  loras: 'M10 2.5l7 4-7 4-7-4zM3 10l7 4 7-4M3 13.5l7 4 7-4',
  avatars: 'M10 10a3.5 3.5 0 100-7 3.5 3.5 0 000 7zM3.5 17c.6-3.4 3.2-5 6.5-5s5.9 1.6 6.5 5',
  costs: 'M3 17h14M5 14V9M9 14V4M13 14v-7M16.5 14v-3',
  seal: 'M10 2.5l6 2.5v5c0 4-2.8 6.5-6 7.5-3.2-1-6-3.5-6-7.5V5zM7 10l2.2 2.2L13 8.5',
  more: 'M5.5 10a1 1 0 11-2 0 1 1 0 012 0zM11 10a1 1 0 11-2 0 1 1 0 012 0zM16.5 10a1 1 0 11-2 0 1 1 0 012 0z',
  lock: 'M5 9h10v8H5zM7 9V6.5a3 3 0 016 0V9',
  unlock: 'M5 9h10v8H5zM7 9V6a3 3 0 015.8-1',
  dice: 'M4 4h12v12H4zM7.5 7.5h.01M12.5 7.5h.01M10 10h.01M7.5 12.5h.01M12.5 12.5h.01',
  download: 'M10 3v9M6 8.5l4 4 4-4M3.5 16.5h13',
  link: 'M8.5 11.5l3-3M9 6l2-2a3.2 3.2 0 014.5 4.5l-2 2M11 14l-2 2a3.2 3.2 0 01-4.5-4.5l2-2',
  again: 'M16 10a6 6 0 11-1.8-4.3L16 7.5M16 3.5v4h-4',
  vary: 'M3 6h3.5l7 8H17M14.5 11.5L17 14l-2.5 2.5M3 14h3.5l1.8-2M11.5 8l2-2H17M14.5 3.5L17 6l-2.5 2.5',
  reuse: 'M4 5h8M4 10h6M4 15h4M16 8v8M12.5 12.5L16 16',
  compare: 'M10 2.5v15M3.5 5h4v10h-4zM12.5 5h4v10h-4z',
  trash: 'M4 5.5h12M8 5.5v-2h4v2M5.5 5.5l.7 11h7.6l.7-11M8.5 9v4.5M11.5 9v4.5',
  close: 'M5 5l10 10M15 5L5 15',
  left: 'M12.5 4l-6 6 6 6',
  right: 'M7.5 4l6 6-6 6',
  plus: 'M10 4v12M4 10h12',
  upload: 'M10 13V4M6 7.5l4-4 4 4M3.5 16.5h13',
  sun: 'M10 13.5a3.5 3.5 0 100-7 3.5 3.5 0 000 7zM10 2v1.5M10 16.5V18M2 10h1.5M16.5 10H18M4.3 4.3l1.1 1.1M14.6 14.6l1.1 1.1M4.3 15.7l1.1-1.1M14.6 5.4l1.1-1.1',
  check: 'M4 10.5l4 4 8-9',
  key: 'M13 3.5a3.5 3.5 0 11-3 5.2L4 14.5V17h2.5v-2H8v-1.5L10.8 10.5',
  image: 'M3 4h14v12H3zM3 13.5l4-4 3.5 3.5 2.5-2.5 4 4M12.5 7.5h.01',
  swap: 'M5 3v11M2.5 11.5L5 14l2.5-2.5M15 17V6M12.5 8.5L15 6l2.5 2.5',
  minus: 'M4 10h12',
  star: 'M10 2.5l2.3 4.9 5.2.7-3.8 3.7.9 5.3-4.6-2.6-4.6 2.6.9-5.3L2.5 8.1l5.2-.7z',
  expand: 'M3.5 8V3.5H8M12 3.5h4.5V8M16.5 12v4.5H12M8 16.5H3.5V12',
  copy: 'M7 7h9.5v9.5H7zM4 13H3.5V3.5H13V4',
  share: 'M10 12V3M6.5 6L10 2.5 13.5 6M5 10H4v7h12v-7h-1',
  board: 'M2.5 5h5l1.5 2h8.5v9h-15z',
  filter: 'M3 5h14M5.5 10h9M8 15h4',
  undo: 'M4 8.5h8a4 4 0 010 8H8M7 5L3.5 8.5 7 12',
  clock: 'M10 17a7 7 0 100-14 7 7 0 000 14zM10 6v4.2l2.8 1.8',
  style: 'M10 2.5l1.6 4.4 4.4 1.6-4.4 1.6L10 14.5l-1.6-4.4L4 8.5l4.4-1.6zM15.5 13v4M13.5 15h4',
  queue: 'M3.5 5h13M3.5 10h13M3.5 15h8',
  keyboard: 'M2.5 5.5h15v9h-15zM5.5 8.5h.01M8.5 8.5h.01M11.5 8.5h.01M14.5 8.5h.01M6.5 11.5h7',
  brush: 'M16.5 3.5c-3 1-6.5 4.5-8 7l2 2c2.5-1.5 6-5 7-8zM7.5 11.5c-2 0-2.5 1.5-2.5 3 0 1-.7 1.7-1.7 2 3.2.7 6.2-.3 6.2-3z',
  out: 'M12 3.5h4.5v13H12M3 10h9M9 6.5l3.5 3.5L9 13.5',
} as const;

export type IconName = keyof typeof PATHS;

/** Decoration only: what it means stands beside it or in a label. */
export function Icon({ name, size = 18 }: { name: IconName; size?: number }) {
  return (
    <svg class="icon" width={size} height={size} viewBox="0 0 20 20" aria-hidden="true">
      <path d={PATHS[name]} />
    </svg>
  );
}

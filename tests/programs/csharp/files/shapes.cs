static class Shapes { public static int Area(int width, int height) => width * height; }
